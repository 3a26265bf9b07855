"""What adapters cost above the frozen model, and what surgery costs, against PEFT.

    python -m benchmarks.speed [--depth 12] [--rounds 5] [--only GLOB] [--resume]

Needs ``pip install peft``. Models are randomly initialised: no time depends on the weights. The
floor is the frozen model with gradients flowing from the first block on; every case gets the same
gradient there. ``least`` makes the gradients of the factors and nothing else: no LoRA can cost less.
Cases take turns, every figure is a median over rounds, and ratios are taken within a round. The clock is
CPU time on one thread, which other work on the machine disturbs less than wall time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import partial
from typing import Any

import peft
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import surgery
from benchmarks.record import keep, load
from benchmarks.speed_least import least
from benchmarks.speed_subjects import Subject, subjects

ROLES = {
    "q,v": ["attention.query", "attention.value"],
    "all": ["attention.query", "attention.key", "attention.value", "attention.output", "mlp.up", "mlp.down"],
}  # fmt: skip
OURS = ("lora", "pissa", "symlora", "srlora")
SWITCH_EVERY = 100
"""Steps between two recompositions, over which one is spread."""


@dataclass
class Case:
    """One way to train; ``after`` is what it needs between backward and the optimizer's step."""

    model: nn.Module
    after: Callable[[], object] = lambda: None
    seconds: list[float] = field(default_factory=list)


def main() -> None:
    """Measure, keep after every row, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=12, help="blocks of each model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="*", metavar="GLOB", help="subjects whose name matches")
    parser.add_argument("--resume", action="store_true", help="keep the rows that are there")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    figures: dict[str, Any] = {
        "clock": "process_time, one thread",
        "depth": given.depth,
        "rounds": given.rounds,
        "training": [],
        "surgery": [],
    }
    if given.resume:
        figures |= {key: load("speed")[key] for key in ("training", "surgery")}
    done = {(row["model"], row["targets"], row["rank"]) for row in figures["training"]}
    for subject in (s for s in subjects(given.depth) if fnmatch(s.name, given.only)):
        anatomy = surgery.read(subject.make())
        if not any(row["model"] == subject.name for row in figures["surgery"]):
            figures["surgery"].append(operations(subject, anatomy, given.rounds))
        for targets in ROLES:
            for rank in (8, 64):
                if (subject.name, targets, rank) not in done:
                    row = training(subject, anatomy, targets, rank, given.rounds)
                    figures["training"].append(row)
                    keep("speed", figures)
    show(figures)


def policy(targets: str, kind: str, rank: int) -> dict[str, Any]:
    """Ours, at one rank; SymLoRA is truncated on what is not square."""
    own: dict[str, Any] = {"kind": kind, "rank": rank}
    own |= {"rectangular": "truncate"} if kind == "symlora" else {}
    own |= {"target_rank": 2 * rank} if kind == "srlora" else {}
    return {"select": [{"roles": ROLES[targets]}], "adapter": own}


def with_peft(model: nn.Module, modules: list[str], rank: int, **options: Any) -> nn.Module:
    """PEFT's LoRA on exactly the modules that ours are on."""
    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=modules, **options)
    return peft.get_peft_model(model, config)


def training(
    subject: Subject, anatomy: surgery.Anatomy, targets: str, rank: int, rounds: int
) -> dict[str, Any]:
    """One row: a forward and a backward of each case, and what each keeps in between."""
    plan = surgery.plan(subject.make(), policy(targets, "lora", rank), anatomy=anatomy)
    modules = sorted({operation.projection.module for operation in plan.operations})
    cases = {
        "floor": Case(subject.make().requires_grad_(False)),
        "least": Case(least(subject.make(), plan)),
        "peft": Case(with_peft(subject.make(), modules, rank)),
    }
    for kind in OURS:
        model = surgery.apply(subject.make(), policy(targets, kind, rank), anatomy=anatomy)
        cases[kind] = Case(model)
    recomposer, optimizer = recomposer_of(cases["srlora"].model, 10**6)
    cases["srlora"].after = recomposer.step
    for case in cases.values():
        let_gradients_through(case.model.train(), subject.embedding)
    kept = {name: kept_bytes(case, subject.batch) for name, case in cases.items()}
    for turn in range(rounds + 1):
        for case in cases.values():
            seconds = step(case, subject.batch)
            if turn:  # the first warms up
                case.seconds.append(seconds)
    switch = recomposition(cases["srlora"], subject.batch)
    del optimizer
    floor = cases["floor"].seconds
    row: dict[str, Any] = {"model": subject.name, "targets": targets, "rank": rank, "cases": {}}
    for name, case in cases.items():
        spread = switch / SWITCH_EVERY if name == "srlora" else 0.0
        over = [(s + spread) / f - 1 for s, f in zip(case.seconds, floor, strict=True)]
        row["cases"][name] = {
            "seconds": round(statistics.median(case.seconds), 4),
            "fastest": round(min(case.seconds), 4),
            "overhead": round(statistics.median(over), 4),
            "overhead_of_fastest": round((min(case.seconds) + spread) / min(floor) - 1, 4),
            "spread": [round(min(over), 4), round(max(over), 4)],
            "kept_mb": round(kept[name] / 1e6, 1),
        }
    row["recomposition_s"] = round(switch, 4)
    return row


def let_gradients_through(model: nn.Module, embedding: str) -> None:
    """Let the first block's input require a gradient."""
    module = next(m for name, m in model.named_modules() if name.split(".")[-1] == embedding)
    module.register_forward_hook(lambda *parts: parts[-1].detach().requires_grad_())


def step(case: Case, batch: dict[str, Tensor]) -> float:
    """Seconds of one forward, backward and what comes after."""
    started = time.process_time()
    torch.autograd.backward(loss(case.model, batch))
    case.after()
    seconds = time.process_time() - started
    case.model.zero_grad()
    return seconds


def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Some scalar of the output."""
    y = model(**batch)
    total: Tensor = getattr(y, "last_hidden_state", y).square().mean()
    return total


def kept_bytes(case: Case, batch: dict[str, Tensor]) -> int:
    """Bytes of all storages kept for the backward, parameters apart."""
    known = {p.untyped_storage().data_ptr() for p in case.model.parameters()}
    sizes: dict[
        int, tuple[int, Tensor]
    ] = {}  # a tensor is held so that its address is not used again

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes(), tensor.detach()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss(case.model, batch)
    return sum(size for size, _ in sizes.values())


def recomposer_of(model: nn.Module, steps: int) -> tuple[surgery.Recomposer, torch.optim.Optimizer]:
    """A recomposer whose switches are spread over ``steps``."""
    optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
    return surgery.Recomposer(model, optimizer, total_steps=steps), optimizer


def recomposition(case: Case, batch: dict[str, Tensor]) -> float:
    """Seconds of one recomposition of every adapter."""
    recomposer, _ = recomposer_of(case.model, 4)
    torch.autograd.backward(loss(case.model, batch))
    times = []
    for _ in range(3):
        before = len(recomposer.history)
        seconds = timed(recomposer.step)
        if len(recomposer.history) > before:
            times.append(seconds)
    case.model.zero_grad()
    return min(times)


def operations(subject: Subject, anatomy: surgery.Anatomy, rounds: int) -> dict[str, Any]:
    """Plan and apply, PiSSA's start, folding and undoing; q,v at rank 8."""
    lora, pissa = policy("q,v", "lora", 8), policy("q,v", "pissa", 8)
    plan = surgery.plan(subject.make(), lora, anatomy=anatomy)
    modules = sorted({operation.projection.module for operation in plan.operations})
    found: dict[str, list[float]] = {}

    def note(name: str, call: Callable[[], object]) -> None:
        found.setdefault(name, []).append(timed(call))

    for _ in range(rounds):
        model = subject.make()
        note("plan + apply", partial(surgery.apply, model, lora, anatomy=anatomy))
        note("undo", partial(surgery.undo, model))
        note("plan + apply, pissa", partial(surgery.apply, model, pissa, anatomy=anatomy))
        surgery.undo(model)
        surgery.apply(model, lora, anatomy=anatomy)
        note("fold", partial(surgery.fold, model))
        other = subject.make()
        note("get_peft_model", partial(with_peft, other, modules, 8))
        fresh = subject.make()
        note(
            "get_peft_model, pissa",
            partial(with_peft, fresh, modules, 8, init_lora_weights="pissa"),
        )
        wrapped = with_peft(subject.make(), modules, 8)
        note("merge_and_unload", lambda m=wrapped: m.merge_and_unload())  # type: ignore[misc]
    medians = {name: round(statistics.median(times), 4) for name, times in found.items()}
    return {"model": subject.name, "seconds": medians}


def timed(call: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    started = time.process_time()
    call()
    return time.process_time() - started


def show(figures: dict[str, Any]) -> None:
    """Two tables: overhead above the floor with what is kept, and the operations."""
    names = ("least", "peft", *OURS)
    table = Table("model", "targets", "r", "floor", *names, title="over the floor, MB kept")
    for row in figures["training"]:
        cells = (f"{c['overhead']:+.1%}, {c['kept_mb']}" for c in map(row["cases"].get, names))
        floor = f"{row['cases']['floor']['seconds']} s"
        table.add_row(row["model"], row["targets"], str(row["rank"]), floor, *cells)
    Console().print(table)
    first = figures["surgery"][0]["seconds"]
    table = Table("model", *first, title="CPU seconds")
    for row in figures["surgery"]:
        table.add_row(row["model"], *map(str, row["seconds"].values()))
    Console().print(table)


if __name__ == "__main__":
    main()
