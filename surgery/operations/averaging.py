"""Averages of adapted models (EMA): copies whose trained numbers follow those of the model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from surgery.errors import StateError
from surgery.operations.adapted import Adapted, adapted_modules
from surgery.operations.graft import Graft

TF32 = 2.0**-9
"""How far two products of float32 factors may be apart, relative to the largest entry."""


class KeepsUp:
    """A forward pre-hook of an average: where the ledgers moved since, weights are recomputed.

    Whoever averages writes to the ledgers in place, so their version counters tell, without a look at the
    numbers.
    """

    def __init__(self) -> None:
        self._seen: dict[str, list[int]] = {}

    def __call__(self, model: nn.Module, *_: Any) -> None:
        """Recompute what is stale."""
        for path, owner in adapted_modules(model):
            if self._seen.get(path) != _versions(owner):
                owner.refresh_base()
                self._seen[path] = _versions(owner)

    def __getstate__(self) -> dict[str, Any]:
        """A copy's counters begin anew."""
        return {"_seen": {}}


def _versions(owner: Adapted) -> list[int]:
    buffers = [buffer._version for buffer in owner.adapters.buffers()]
    return buffers + [owner.base(name)._version for name, _ in owner.grafts()]


def attach(average: nn.Module) -> None:
    """Let a copy of an adapted model recompute its weights whenever it is run."""
    if not any(_hooks(average)):
        average.register_forward_pre_hook(KeepsUp())


def detach(model: nn.Module) -> None:
    """Take the hook away again, if there is one."""
    for key in list(_hooks(model)):
        del model._forward_pre_hooks[key]


def keep_up(model: nn.Module) -> None:
    """Make every corrected weight what its ledgers say, or refuse.

    An average that is registered with a ``Recomposer`` is brought up to date. Any other model is looked at:
    copies that were averaged over a recomposition mix pairs of two subspaces.

    Raises:
        StateError: If a live weight is not its original plus the corrections.
    """
    hooks = [model._forward_pre_hooks[key] for key in _hooks(model)]
    for hook in hooks:
        hook(model)
    if not hooks:
        for path, owner in adapted_modules(model):
            for name, graft in owner.grafts():
                _check(".".join(filter(None, (path, name))), owner.base(name).detach(), graft)


def _hooks(model: nn.Module) -> Iterator[int]:
    return (key for key, hook in model._forward_pre_hooks.items() if isinstance(hook, KeepsUp))


@torch.no_grad()
def _check(weight: str, live: Tensor, graft: Graft) -> None:
    corrected = graft.corrected(live.dtype, live.device)
    if corrected is None:
        return
    assert graft.original is not None
    moved = (corrected - graft.original.to(corrected)).abs().amax()
    facts = torch.finfo(live.dtype)
    slack = 2 * facts.eps * (corrected.abs() + facts.smallest_normal) + TF32 * moved
    if ((live.to(corrected) - corrected).abs() > slack).any():
        raise StateError(
            f"{weight} is not what its adapters make of it",
            where=weight,
            why="the weight is not its original plus what recomposition entered: this is an average of a model "
            "that was recomposed meanwhile, or the weight was written to",
            remedy="make the average before the training, and tell the recomposer of it: "
            "surgery.Recomposer(model, optimizer, total_steps=..., averages=[average])",
        )
