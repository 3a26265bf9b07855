"""Optimizer groups: what trains, and what of it may decay."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from surgery.adapters.base import Adapter
from surgery.errors import StateError
from surgery.operations.extras import is_norm


def parameter_groups(
    model: nn.Module, *, lr: float | None = None, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """The trainable parameters of a model as optimizer groups, each parameter exactly once.

    Adapters that carry pretrained weight (PiSSA, SRLoRA) get no weight decay: it would wear the
    pretrained weight away. Biases, norms and other vectors get none either.

    Args:
        model: Any model, adapted or not.
        lr: Learning rate of every group; None leaves it to the optimizer.
        weight_decay: Of the other adapters and weights.

    Returns:
        Groups ``{"name", "params", "weight_decay"[, "lr"]}``, empty ones left out. The names are
        ``adapters``, ``adapters.base``, ``weights`` and ``biases and norms``.

    Raises:
        StateError: If nothing is trainable.
    """
    members: dict[str, list[nn.Parameter]] = {}
    for group, parameter in _grouped(model):
        members.setdefault(group, []).append(parameter)
    if not members:
        raise StateError(
            f"{type(model).__name__} has no trainable parameters",
            remedy="apply a policy first: surgery.apply(model, policy)",
        )
    decayed = ("adapters", "weights")
    rate = {} if lr is None else {"lr": lr}
    return [
        {
            "name": name,
            "params": parameters,
            "weight_decay": weight_decay if name in decayed else 0.0,
            **rate,
        }
        for name, parameters in members.items()
    ]


def _grouped(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Each trainable parameter once, with its group; an adapter owns what lies inside it."""
    seen: set[int] = set()
    adapters = [module for module in model.modules() if isinstance(module, Adapter)]
    for module in [*adapters, *model.modules()]:
        whole = isinstance(module, Adapter)
        for parameter in module.parameters(recurse=whole):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                yield _group(module, parameter), parameter


def _group(module: nn.Module, parameter: nn.Parameter) -> str:
    if isinstance(module, Adapter):
        return "adapters.base" if module.carries_base else "adapters"
    if parameter.ndim <= 1 or is_norm(module):
        return "biases and norms"
    return "weights"
