"""Training steps of whole models: what adapters cost above the frozen model in time and memory."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import surgery
from benchmarks.clocks import Budget, events, peak_bytes, wall
from benchmarks.cuda.placed import PRECISIONS, placed, read
from benchmarks.speed_cases import (
    ROLES,
    Case,
    cases_of,
    kept_bytes,
    over_floor,
    recomposition,
)
from benchmarks.speed_subjects import Subject, sizes_on, subjects
from surgery.adapters import svd

ROUNDS, STEPS, SECONDS = 5, 2, 1.5
"""Turns that every case takes, steps in a row at each, and the time after which no third turn begins."""
MAIN = "bf16 weights, autocast"
OTHERS = ("bf16 weights", "fp32 weights, autocast")
COMPARED = ("ViT-B", "SmolLM2")
"""Subjects that are trained in the other precisions too."""
FIRST = (
    ("ViT-B", "all"), ("ViT-B", "q,v"), ("SmolLM2", "all"), ("BERT-base", "all"), ("ViT-S", "all"),
    ("ViT-S", "q,v"),
)  # fmt: skip
"""The most telling rows, for a run whose time ends early."""


def rows(device: str, depth: int) -> Iterator[dict[str, Any]]:
    """Rank 8 in the main precision, then rank 64, then the other precisions."""
    known = list(subjects(depth, sizes_on(device)))
    compared = [subject for subject in known if subject.name.split()[0] in COMPARED]
    jobs = [(subject, MAIN, targets, 8) for subject in known for targets in ROLES]
    jobs.sort(key=_place)
    jobs += [(subject, MAIN, "all", 64) for subject in known]
    jobs += [(s, name, targets, 8) for s in compared for name in OTHERS for targets in ROLES]
    anatomy = cache(read)
    on_device = cache(partial(placed, device=device))
    for subject, precision, targets, rank in jobs:
        model = on_device(subject, dtype=PRECISIONS[precision].weights)
        yield row(model, anatomy(subject), precision, targets, rank, device)


def _place(job: tuple[Subject, str, str, int]) -> int:
    subject, _, targets, _ = job
    kind = subject.name.split()[0], targets
    return FIRST.index(kind) if kind in FIRST else len(FIRST)


def row(
    subject: Subject, anatomy: surgery.Anatomy, precision: str, targets: str, rank: int, device: str
) -> dict[str, Any]:
    """A forward and a backward of each case, what each keeps in between, and its peak."""
    autocast = PRECISIONS[precision].context(device)
    with patch.object(svd, "leading", any_directions):
        cases = cases_of(subject, anatomy, targets, rank, autocast)
    memory = {name: memory_of(case, subject.batch, device) for name, case in cases.items()}
    take_turns(cases, subject.batch, device)
    switch = recomposition(cases["srlora"], subject.batch, partial(wall, device=device))
    found = over_floor(cases, switch)
    for name, figures in found.items():
        figures |= memory[name]
    about = {"model": subject.name, "precision": precision, "targets": targets, "rank": rank}
    return about | {"cases": found, "recomposition_s": round(switch, 4)}


def take_turns(cases: dict[str, Case], batch: dict[str, Tensor], device: str) -> None:
    """Note the seconds of a step of each case, some steps in a row, one case after the other."""
    budget = Budget(SECONDS)
    for turn in range(ROUNDS + 1):
        if turn > 2 and budget.is_spent:
            break
        for case in cases.values():
            seconds = events(partial(step, case, batch), device, STEPS if turn else 1)
            if turn:  # the first warms up
                case.seconds.append(seconds)


def step(case: Case, batch: dict[str, Tensor]) -> None:
    """One step of training, the optimizer's apart."""
    case.step(batch)
    case.model.zero_grad()


def memory_of(case: Case, batch: dict[str, Tensor], device: str) -> dict[str, float | None]:
    """Megabytes kept for the backward, and the peak of a step above the resting model."""
    step(case, batch)  # what is allocated once and for all
    peak = peak_bytes(partial(step, case, batch), device)
    return {
        "kept_mb": round(kept_bytes(case, batch) / 1e6, 1),
        "peak_mb": None if peak is None else round(peak / 1e6, 1),
    }


def any_directions(weight: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """In the place of singular directions, whose values no step's time depends on."""
    out, width = weight.shape
    u = torch.randn(out, count, device=weight.device) / out**0.5
    vh = torch.randn(count, width, device=weight.device) / width**0.5
    return u, torch.ones(count, device=weight.device), vh
