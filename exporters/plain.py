"""The model that is exported: plain, in eval mode, fp32, on the CPU. The user's own is left alone."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from torch import nn

from exporters.lineage import Lineage
from exporters.preflight import check_model
from surgery.anatomy.wrappers import unwrap
from surgery.operations.fold import fold

_RECORD = "_surgery"


@dataclass(frozen=True)
class Plain:
    """A model ready for export.

    Attributes:
        model: The user's own, if it was plain already; else a copy.
        lineages: What was folded into it or set apart from it, for the metadata.
        notes: What was done to the copy.
    """

    model: nn.Module
    lineages: list[Lineage] = field(default_factory=list)
    notes: tuple[str, ...] = ()


def plain_model(model: nn.Module) -> Plain:
    """Return the model, or a copy with its adapters folded and its weights in fp32 on the CPU.

    Raises:
        ExportError: If the model is in train mode or has weights that are not finite.
        StateError: If it is wrapped by DDP, FSDP or PEFT.
    """
    model = unwrap(model)
    check_model(model)
    adapted = any(_RECORD in module.__dict__ for module in model.modules())
    casts, moves = _differs(model)
    if not (adapted or casts or moves):
        return Plain(model)
    model = copy.deepcopy(model)
    parts = [module for module in model.modules() if _RECORD in module.__dict__]
    lineages = [Lineage.of(part, part.__dict__[_RECORD].plan) for part in parts]
    for part in parts:
        fold(part)
    model.to("cpu")
    model.float()
    notes = [
        f"the adapters of policy {lineage.policy['name']} were folded in a copy"
        for lineage in lineages
    ]
    notes += ["the weights were cast to fp32 in a copy"] if casts else []
    return Plain(model.eval(), lineages, tuple(notes))


def _differs(model: nn.Module) -> tuple[bool, bool]:
    """Whether floating point weights are not fp32, and whether any weight is not on the CPU."""
    tensors = [*model.parameters(), *model.buffers()]
    casts = any(t.is_floating_point() and t.dtype is not torch.float32 for t in tensors)
    return casts, any(t.device.type != "cpu" for t in tensors)
