"""What planning, applying, undoing and PiSSA's start cost, against PEFT.

    python -m benchmarks.operations [--rounds 7] [--depth 12]

Needs ``pip install peft``. Query and value at rank 8, the anatomy read before; random weights, sides take
turns. CPU time on one thread, medians; the ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import surgery
from benchmarks.record import keep
from benchmarks.speed import timed
from benchmarks.speed_cases import modules_of, policy, with_peft
from benchmarks.speed_subjects import Subject, subjects

SIZES = {"ViT-S": (8,), "ViT-B": (8,), "BERT-base": (8,), "MiniLM": (8,), "SmolLM2": (2,)}
OURS, THEIRS = "plan + apply", "get_peft_model"


def main() -> None:
    """Measure, keep after every model, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--depth", type=int, default=12, help="blocks of each model")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    os.environ["MODEL_SURGERY_CACHE"] = "off"  # a start from the cache would be another question
    rows: list[dict[str, Any]] = []
    for subject in subjects(given.depth, SIZES):
        rows.append(measured(subject, given.rounds))
        keep("operations", {"depth": given.depth, "rounds": given.rounds, "rows": rows})
    table = Table(*rows[0], title="CPU milliseconds")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)


def measured(subject: Subject, rounds: int) -> dict[str, Any]:
    """One row."""
    anatomy = surgery.read(subject.make())
    lora, pissa = policy("q,v", "lora", 8), policy("q,v", "pissa", 8)
    plan = surgery.plan(subject.make(), lora, anatomy=anatomy)
    modules = modules_of(plan)
    found: dict[str, list[float]] = defaultdict(list)

    def note(name: str, call: Callable[[], object]) -> None:
        found[name].append(timed(call))

    for _ in range(rounds):
        model, other, fresh = subject.make(), subject.make(), subject.make()
        note(OURS, partial(surgery.apply, model, lora, anatomy=anatomy))
        note(THEIRS, partial(with_peft, other, modules, 8))
        note("undo", partial(surgery.undo, model))
        note(f"{OURS}, pissa", partial(surgery.apply, model, pissa, anatomy=anatomy))
        start = partial(with_peft, fresh, modules, 8, init_lora_weights="pissa")
        note(f"{THEIRS}, pissa", start)
    row = {name: round(1e3 * statistics.median(times), 1) for name, times in found.items()}
    ratios = {
        f"ratio{start}": [
            a / b for a, b in zip(found[OURS + start], found[THEIRS + start], strict=True)
        ]
        for start in ("", ", pissa")
    }
    medians = {name: round(statistics.median(each), 2) for name, each in ratios.items()}
    return {"model": subject.name.partition(" ")[0], **row, **medians}


if __name__ == "__main__":
    main()
