"""What is compared: each method puts its trainable parameters on a plain model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import peft
from torch import Tensor, nn

import policies
import surgery
from benchmarks.study.controls import KeepingState

RANK = 8
ADAPTER_RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
LARGE_RATES = ADAPTER_RATES[2:]
_QUERY_VALUE = ["attention.query", "attention.value"]
_ALL = [*_QUERY_VALUE, "attention.key", "attention.output", "mlp.up", "mlp.gate", "mlp.down"]


@dataclass(frozen=True)
class Given:
    """What a method is given.

    Attributes:
        network: Plain and frozen or not; it is changed in place.
        anatomy: Of a network like it.
        modules: Where PEFT finds query and value.
        seed: Of random starts.
        batches: Makes a few pairs of inputs, as the network takes them, and labels.
    """

    network: nn.Module
    anatomy: surgery.Anatomy
    modules: tuple[str, ...]
    seed: int
    batches: Callable[[], list[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class Method:
    """One way to fine-tune.

    Attributes:
        title: As the table shows it.
        prepare: Makes the network trainable this way, and returns it.
        rates: Learning rates that are tried first on the validation examples; larger or smaller ones follow
            as long as the best is the largest or the smallest.
        recomposer: What it needs between backward and the optimizer's step.
        control: Whether it is here to explain another one.
    """

    title: str
    prepare: Callable[[Given], nn.Module]
    rates: tuple[float, ...] = field(default=ADAPTER_RATES)
    recomposer: type[surgery.Recomposer] | None = None
    control: bool = False


def _policy(kind: str, everywhere: bool = False, **options: Any) -> dict[str, Any]:
    return {
        "select": [{"roles": _ALL if everywhere else _QUERY_VALUE}],
        "adapter": {"kind": kind, "rank": RANK, **options},
        "train": ["head"],
    }


def _ours(kind: str, *, everywhere: bool = False, **options: Any) -> Callable[[Given], nn.Module]:
    policy = _policy(kind, everywhere, **options)
    return lambda it: surgery.apply(it.network, policy, seed=it.seed, anatomy=it.anatomy)


def _one_budget(measured: bool, *, everywhere: bool) -> Callable[[Given], nn.Module]:
    """LoRA with as many weights as query and value get at the usual rank: alike everywhere, or by measurement."""
    wide = _policy("lora", everywhere)

    def prepare(it: Given) -> nn.Module:
        usual = surgery.plan(it.network, _policy("lora"), anatomy=it.anatomy)
        budget = usual.adapter_parameters
        if not measured:
            chosen = policies.get(wide, budget=budget)
        else:
            chosen = surgery.allocate(
                it.network, it.batches(), wide, budget=budget, anatomy=it.anatomy
            )
        return surgery.apply(it.network, chosen, seed=it.seed, anatomy=it.anatomy)

    return prepare


def _peft(start: Literal["pissa"] | bool) -> Callable[[Given], nn.Module]:
    """PEFT's LoRA, alpha = rank as ours; of a fused projection it takes the whole."""

    def prepare(it: Given) -> nn.Module:
        config = peft.LoraConfig(
            r=RANK,
            lora_alpha=RANK,
            target_modules=list(it.modules),
            modules_to_save=["head"],
            init_lora_weights=start,
        )
        return peft.get_peft_model(it.network, config)

    return prepare


def _recomposing(title: str, kind: str, control: bool = False, **options: Any) -> Method:
    return Method(title, _ours(kind, **options), recomposer=surgery.Recomposer, control=control)


def _head(it: Given) -> nn.Module:
    return surgery.apply(it.network, {"train": ["head"]}, anatomy=it.anatomy)


METHODS: dict[str, Method] = {
    "head": Method("linear head", _head, (1e-3, 3e-3, 1e-2, 3e-2)),
    "full": Method("full fine-tuning", lambda it: it.network.requires_grad_(True), (1e-5, 3e-5, 1e-4, 3e-4)),
    "lora": Method("LoRA", _ours("lora")),
    "rslora": Method("rsLoRA", _ours("lora", scaling="rslora")),
    "pissa": Method("PiSSA", _ours("pissa")),
    "frozen-a": Method("LoRA, A frozen", _ours("frozen-a")),
    "symlora": Method("SymLoRA", _ours("symlora", rectangular="truncate")),
    "symlora-16": Method("SymLoRA, rank 16", _ours("symlora", rank=2 * RANK, rectangular="truncate")),
    "polar": Method("polar SymLoRA", _ours("polar")),
    "srlora": _recomposing("SRLoRA", "srlora"),
    "sym-srlora": _recomposing("symmetric SRLoRA", "sym-srlora"),
    "peft-lora": Method("LoRA (PEFT)", _peft(True)),
    "peft-pissa": Method("PiSSA (PEFT)", _peft("pissa")),
    "lora-all": Method("LoRA, all linear", _ours("lora", everywhere=True)),
    "lora-thin": Method("LoRA, all linear, as many weights", _one_budget(False, everywhere=True), LARGE_RATES),
    "lora-auto": Method("LoRA, ranks measured", _one_budget(True, everywhere=False), LARGE_RATES),
    "lora-auto-all": Method("LoRA, all linear, ranks measured", _one_budget(True, everywhere=True), LARGE_RATES),
    "symlora-all": Method("SymLoRA, all linear", _ours("symlora", everywhere=True, rectangular="truncate")),
    "polar-all": Method("polar SymLoRA, all linear", _ours("polar", everywhere=True)),
    "srlora-all": _recomposing("SRLoRA, all linear", "srlora", everywhere=True),
    "srlora-random": _recomposing("SRLoRA, random pairs fused", "srlora-random", control=True),
    "srlora-strongest": _recomposing("SRLoRA, strongest pairs fused", "srlora-strongest", control=True),
    "srlora-gamma-25": _recomposing("SRLoRA, gamma 0.25", "srlora", control=True, gamma=0.25),
    "srlora-gamma-100": _recomposing("SRLoRA, gamma 1", "srlora", control=True, gamma=1.0),
    "srlora-target-16": _recomposing("SRLoRA, r_target 16", "srlora", control=True, target_rank=16),
    "srlora-target-64": _recomposing("SRLoRA, r_target 64", "srlora", control=True, target_rank=64),
    "srlora-state": Method(
        "SRLoRA, optimizer state kept", _ours("srlora"), recomposer=KeepingState, control=True
    ),
    "symlora-twins": Method("SymLoRA, twins", _ours("symlora", rectangular="truncate", start="twins")),
    "polar-twins": Method("polar SymLoRA, twins", _ours("polar", start="twins")),
    "relora": _recomposing("ReLoRA-style restarts", "relora", control=True, gamma=1.0),
}  # fmt: skip
