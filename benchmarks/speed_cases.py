"""The cases that training is timed on: the frozen model, the least, PEFT and ours."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import peft
import torch
from torch import Tensor, nn

import surgery
from benchmarks.speed_least import least
from benchmarks.speed_subjects import Subject

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
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext
    seconds: list[float] = field(default_factory=list)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Some scalar of the output."""
        with self.autocast():
            y = self.model(**batch)
            total: Tensor = getattr(y, "last_hidden_state", y).square().mean()
        return total

    def step(self, batch: dict[str, Tensor]) -> None:
        """One forward, backward and what comes after; gradients stay."""
        torch.autograd.backward(self.loss(batch))
        self.after()


def policy(targets: str, kind: str, rank: int) -> dict[str, Any]:
    """Ours, at one rank; SymLoRA is truncated on what is not square."""
    own: dict[str, Any] = {"kind": kind, "rank": rank}
    own |= {"rectangular": "truncate"} if kind == "symlora" else {}
    own |= {"target_rank": 2 * rank} if kind == "srlora" else {}
    return {"select": [{"roles": ROLES[targets]}], "adapter": own}


def modules_of(plan: surgery.Plan) -> list[str]:
    """The modules that a plan puts adapters on, as PEFT is told them."""
    return sorted({operation.projection.module for operation in plan.operations})


def with_peft(model: nn.Module, modules: list[str], rank: int, **options: Any) -> nn.Module:
    """PEFT's LoRA on exactly the modules that ours are on."""
    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=modules, **options)
    return peft.get_peft_model(model, config)


def cases_of(
    subject: Subject,
    anatomy: surgery.Anatomy,
    targets: str,
    rank: int,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> dict[str, Case]:
    """Every case, with gradients let through from the first block on."""
    make = subject.make
    plan = surgery.plan(make(), policy(targets, "lora", rank), anatomy=anatomy)
    modules = modules_of(plan)
    cases = {
        "floor": Case(make().requires_grad_(False)),
        "least": Case(least(make(), plan)),
        "peft": Case(with_peft(make(), modules, rank)),
    }
    for kind in OURS:
        cases[kind] = Case(surgery.apply(make(), policy(targets, kind, rank), anatomy=anatomy))
    recomposer, _ = recomposer_of(cases["srlora"].model, 10**6)
    cases["srlora"].after = recomposer.step
    for case in cases.values():
        case.autocast = autocast
        let_gradients_through(case.model.train(), subject.embedding)
    return cases


def let_gradients_through(model: nn.Module, embedding: str) -> None:
    """Let the first block's input require a gradient."""
    module = next(m for name, m in model.named_modules() if name.split(".")[-1] == embedding)
    module.register_forward_hook(lambda *parts: parts[-1].detach().requires_grad_())


def kept_bytes(case: Case, batch: dict[str, Tensor]) -> int:
    """Bytes of all storages kept for the backward, parameters apart."""
    known = {p.untyped_storage().data_ptr() for p in case.model.parameters()}
    kept: dict[
        int, tuple[int, Tensor]
    ] = {}  # a tensor is held so that its address is not used again

    def note(tensor: Tensor) -> None:
        """Keep nothing for the node: its own output would hold the node, and nothing would be freed."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes(), tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(note, lambda nothing: nothing):
        case.loss(batch)
    return sum(size for size, _ in kept.values())


def recomposer_of(model: nn.Module, steps: int) -> tuple[surgery.Recomposer, torch.optim.Optimizer]:
    """A recomposer whose switches are spread over ``steps``."""
    optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
    return surgery.Recomposer(model, optimizer, total_steps=steps), optimizer


def recomposition(
    case: Case, batch: dict[str, Tensor], timed: Callable[[Callable[[], object]], float]
) -> float:
    """Seconds of one recomposition of every adapter."""
    recomposer, _ = recomposer_of(case.model, 4)
    torch.autograd.backward(case.loss(batch))
    times = []
    for _ in range(3):
        before = len(recomposer.history)
        seconds = timed(recomposer.step)
        if len(recomposer.history) > before:
            times.append(seconds)
    case.model.zero_grad()
    return min(times)


def over_floor(cases: dict[str, Case], switch: float) -> dict[str, dict[str, Any]]:
    """What each case costs above the frozen model; a switch of SRLoRA's is spread over its steps."""
    floor, found = cases["floor"].seconds, {}
    for name, case in cases.items():
        spread = switch / SWITCH_EVERY if name == "srlora" else 0.0
        over = [(s + spread) / f - 1 for s, f in zip(case.seconds, floor, strict=True)]
        found[name] = {
            "seconds": round(statistics.median(case.seconds), 4),
            "fastest": round(min(case.seconds), 4),
            "overhead": round(statistics.median(over), 4),
            "overhead_of_fastest": round((min(case.seconds) + spread) / min(floor) - 1, 4),
            "spread": [round(min(over), 4), round(max(over), 4)],
        }
    return found
