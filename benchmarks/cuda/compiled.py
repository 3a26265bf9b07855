"""Training steps under torch.compile, block by block, beside the same steps without."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from benchmarks.clocks import wait
from benchmarks.cuda.placed import PRECISIONS, placed, read
from benchmarks.cuda.training import MAIN, any_directions, step, take_turns
from benchmarks.speed_cases import Case, cases_of, over_floor
from benchmarks.speed_subjects import Subject, sizes_on, subjects
from surgery.adapters import svd

MODEL, RANK = "ViT-B", 8
COMPARED = ("floor", "peft", "lora")


def rows(device: str, depth: int) -> Iterator[dict[str, Any]]:
    """One row for each case: all linears at rank 8."""
    subject = next(s for s in subjects(depth, sizes_on(device)) if s.name.startswith(MODEL))
    here = placed(subject, device, PRECISIONS[MAIN].weights)
    with patch.object(svd, "leading", any_directions):
        every = cases_of(here, read(subject), "all", RANK, PRECISIONS[MAIN].context(device))
    cases = {name: every[name] for name in COMPARED}
    take_turns(cases, here.batch, device)
    eager = over_floor(cases, 0.0)
    torch._dynamo.reset()  # once: all three are kept compiled
    compile_s = {name: _compiled(case, here, depth, device) for name, case in cases.items()}
    for case in cases.values():
        case.seconds.clear()
    take_turns(cases, here.batch, device)
    for name, figures in over_floor(cases, 0.0).items():
        yield {
            "model": subject.name,
            "case": name,
            "compile_s": round(compile_s[name], 1),
            "eager_s": eager[name]["seconds"],
            "eager_overhead": eager[name]["overhead"],
            "compiled_s": figures["seconds"],
            "compiled_overhead": figures["overhead"],
        }


def _compiled(case: Case, subject: Subject, depth: int, device: str) -> float:
    """Compile every block in place; seconds of the first step."""
    for block in _blocks(case.model, depth):
        block.compile(fullgraph=True)
    started = time.perf_counter()
    step(case, subject.batch)
    wait(device)
    return time.perf_counter() - started


def _blocks(model: nn.Module, depth: int) -> list[nn.Module]:
    lists = (nn.ModuleList, nn.Sequential)
    found = (m for name, m in model.named_modules() if isinstance(m, lists) and "blocks" in name)
    return list(next(m for m in found if len(m) == depth))
