"""What folding costs against PEFT's merge_and_unload, in the dtypes that models are shipped in.

    python -m benchmarks.folding [--rounds 5]

Needs ``pip install peft``. Query and value at rank 8; both sides take turns. The clock is CPU time on one
thread, of which page faults are a large part here, so ratios say more than seconds.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import surgery
from benchmarks.record import keep
from benchmarks.speed import timed
from benchmarks.speed_cases import modules_of, policy, with_peft
from benchmarks.speed_subjects import Subject, subjects

MODELS = ("BERT-base b8", "ViT-B b8")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def main() -> None:
    """Measure, keep after every row, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    for subject in (subject for subject in subjects(12) if subject.name in MODELS):
        anatomy = surgery.read(subject.make())
        for dtype in DTYPES:
            rows.append(row(subject, anatomy, dtype, rounds))
            keep("folding", {"clock": "process_time, one thread", "rounds": rounds, "rows": rows})
    table = Table(*rows[0])
    for each in rows:
        table.add_row(*map(str, each.values()))
    Console().print(table)


def row(
    subject: Subject, anatomy: surgery.Anatomy, dtype: torch.dtype, rounds: int
) -> dict[str, Any]:
    """Medians over rounds, and the median of the ratios of each round."""
    asked = policy("q,v", "lora", 8)
    plan = surgery.plan(subject.make(), asked, anatomy=anatomy)
    modules = modules_of(plan)
    ours, theirs = [], []
    for _ in range(rounds):
        model = trained(surgery.apply(subject.make().to(dtype), asked, anatomy=anatomy))
        ours.append(timed(partial(surgery.fold, model)))
        wrapped: Any = trained(with_peft(subject.make().to(dtype), modules, 8))
        theirs.append(timed(wrapped.merge_and_unload))
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {
        "model": subject.name,
        "dtype": str(dtype).removeprefix("torch."),
        "fold ms": round(1e3 * statistics.median(ours), 1),
        "merge_and_unload ms": round(1e3 * statistics.median(theirs), 1),
        "ratio": round(statistics.median(ratios), 2),
    }


@torch.no_grad()
def trained(model: nn.Module) -> nn.Module:
    """As if: with B still zero there would be nothing to round."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    return model


if __name__ == "__main__":
    main()
