"""What adapters cost above the frozen model in training, against PEFT.

    python -m benchmarks.speed [--depth 1] [--rounds 40] [--seconds 150] [--only GLOB] [--resume]

Needs ``pip install peft``. Models are randomly initialised: no time depends on the weights. The
floor is the frozen model with gradients flowing from the first block on; every case gets the same
gradient there. ``least`` makes the gradients of the factors and nothing else: no LoRA can cost less.
Cases take turns, every figure is a median over rounds, and ratios are taken within a round. The clock is
CPU time on one thread, which other work on the machine disturbs less than wall time. On a shared machine a step
varies by a third, so many rounds of one block tell more than few of twelve.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from fnmatch import fnmatch
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import surgery
from benchmarks.record import keep, load
from benchmarks.speed_cases import (
    OURS,
    ROLES,
    cases_of,
    kept_bytes,
    over_floor,
    recomposition,
)
from benchmarks.speed_subjects import Subject, subjects

FEWEST = 12
"""Rounds of a row that takes long."""


def main() -> None:
    """Measure, keep after every row, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=1, help="blocks of each model")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument(
        "--seconds", type=float, default=150, help=f"{FEWEST} rounds are enough then"
    )
    parser.add_argument("--only", default="*", metavar="GLOB", help="subjects whose name matches")
    parser.add_argument("--resume", action="store_true", help="keep the rows that are there")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    figures: dict[str, Any] = {
        "clock": "process_time, one thread",
        "depth": given.depth,
        "training": [],
    }
    if given.resume:
        figures["training"] = load("speed")["training"]
    done = {(row["model"], row["targets"], row["rank"]) for row in figures["training"]}
    for subject in (s for s in subjects(given.depth) if fnmatch(s.name, given.only)):
        anatomy = surgery.read(subject.make())
        for targets in ROLES:
            for rank in (8, 64):
                if (subject.name, targets, rank) not in done:
                    row = training(subject, anatomy, targets, rank, given.rounds, given.seconds)
                    figures["training"].append(row)
                    keep("speed", figures)
    show(figures)


def training(
    subject: Subject,
    anatomy: surgery.Anatomy,
    targets: str,
    rank: int,
    rounds: int,
    limit: float,
) -> dict[str, Any]:
    """One row: a forward and a backward of each case, and what each keeps in between."""
    cases = cases_of(subject, anatomy, targets, rank)
    kept = {name: kept_bytes(case, subject.batch) for name, case in cases.items()}
    began = time.monotonic()
    for turn in range(rounds + 1):
        for case in cases.values():
            seconds = timed(partial(case.step, subject.batch))
            case.model.zero_grad()
            if turn:  # the first warms up
                case.seconds.append(seconds)
        if turn >= FEWEST and time.monotonic() - began > limit:
            break
    switch = recomposition(cases["srlora"], subject.batch, timed)
    found = over_floor(cases, switch)
    for name, figures in found.items():
        figures["kept_mb"] = round(kept[name] / 1e6, 1)
    row = {"model": subject.name, "targets": targets, "rank": rank, "rounds": turn, "cases": found}
    return row | {"recomposition_s": round(switch, 4)}


def timed(call: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    started = time.process_time()
    call()
    return time.process_time() - started


def show(figures: dict[str, Any]) -> None:
    """Overhead above the floor, and what is kept."""
    names = ("least", "peft", *OURS)
    table = Table("model", "targets", "r", "floor", *names, title="over the floor, MB kept")
    for row in figures["training"]:
        cells = (f"{c['overhead']:+.1%}, {c['kept_mb']}" for c in map(row["cases"].get, names))
        floor = f"{row['cases']['floor']['seconds']} s"
        table.add_row(row["model"], row["targets"], str(row["rank"]), floor, *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
