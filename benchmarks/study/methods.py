"""What is compared: each method puts its trainable parameters on a plain model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import peft
from torch import nn

import surgery

POLICY = "vit-attn-qv"
RANK = 8
ADAPTER_RATES = (1e-3, 3e-3)


@dataclass(frozen=True)
class Method:
    """One way to fine-tune.

    Attributes:
        title: As the table shows it.
        prepare: Makes the model trainable this way, and returns it.
        rates: Learning rates that are tried on the validation images.
        recomposes: Whether it needs a Recomposer.
    """

    title: str
    prepare: Callable[[nn.Module, int], nn.Module]
    rates: tuple[float, ...] = field(default=ADAPTER_RATES)
    recomposes: bool = False


def _ours(**options: Any) -> Callable[[nn.Module, int], nn.Module]:
    settings = {"rank": RANK, **options}
    return lambda model, seed: surgery.apply(model, POLICY, seed=seed, **settings)


def _peft(start: Literal["pissa"] | bool) -> Callable[[nn.Module, int], nn.Module]:
    """PEFT's LoRA on the whole fused projection, alpha = rank as ours."""

    def prepare(model: nn.Module, seed: int) -> nn.Module:
        config = peft.LoraConfig(
            r=RANK,
            lora_alpha=RANK,
            target_modules=["qkv"],
            modules_to_save=["head"],
            init_lora_weights=start,
        )
        return peft.get_peft_model(model, config)

    return prepare


def _full(model: nn.Module, seed: int) -> nn.Module:
    return model.requires_grad_(True)


METHODS: dict[str, Method] = {
    "head": Method(
        "linear head", lambda model, seed: surgery.apply(model, "head-only"), (3e-3, 1e-2)
    ),
    "full": Method("full fine-tuning", _full, (3e-5, 1e-4)),
    "lora": Method("LoRA", _ours(adapter="lora")),
    "rslora": Method("rsLoRA", _ours(adapter="lora", scaling="rslora")),
    "pissa": Method("PiSSA", _ours(adapter="pissa")),
    "frozen-a": Method("LoRA, A frozen", _ours(adapter="frozen-a")),
    "symlora": Method("SymLoRA", _ours(adapter="symlora")),
    "symlora-16": Method("SymLoRA, rank 16", _ours(adapter="symlora", rank=2 * RANK)),
    "polar": Method("polar SymLoRA", _ours(adapter="polar")),
    "srlora": Method("SRLoRA", _ours(adapter="srlora"), recomposes=True),
    "sym-srlora": Method("symmetric SRLoRA", _ours(adapter="sym-srlora"), recomposes=True),
    "peft-lora": Method("LoRA (PEFT, whole qkv)", _peft(True)),
    "peft-pissa": Method("PiSSA (PEFT, whole qkv)", _peft("pissa")),
}
