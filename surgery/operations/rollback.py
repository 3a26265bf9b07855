"""Taking back what failed in the middle: an operation is done, or the model is as it was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from surgery.operations.adapted import Adapted, adapted_modules, dress, strip
from surgery.operations.graft import Graft
from surgery.operations.state import Record, remember

_PIECE = 2**17
"""Entries that are held twice while two tensors change places."""
_PIECE_ELSEWHERE = 2**24
"""The same on an accelerator, where a small piece costs as much as a large one."""


@contextmanager
def tensors_or_nothing(tensors: Iterable[Tensor], owners: Iterable[Adapted] = ()) -> Iterator[None]:
    """If what happens inside fails, ``tensors`` get their values back.

    Args:
        tensors: What may be written to inside; a copy of each is held meanwhile.
        owners: Modules whose corrected weights follow from ``tensors``: they are recomputed and
            not copied, because they are large.
    """
    before = [(tensor, tensor.detach().clone()) for tensor in tensors]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for tensor, value in before:
                tensor.copy_(value)
        for owner in owners:
            owner.refresh_base()
        raise


@contextmanager
def replaced_or_nothing(
    model: nn.Module, record: Record, patches: Sequence[tuple[Tensor, Tensor]]
) -> Iterator[None]:
    """Give weights new values; if that or what happens inside fails, the model is adapted again.

    Args:
        model: An adapted model; inside, its adapters may be taken out.
        record: Its record.
        patches: Views of weights, each with its new values. The two change places, so no weight is
            held twice; afterwards the values are the old ones.
    """
    seats: list[tuple[nn.Module, dict[str, Graft]]] = [
        (module, dict(module.grafts())) for _, module in adapted_modules(model)
    ]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    hooks = dict(model._forward_pre_hooks)
    before: list[tuple[Tensor, Tensor]] = []
    try:
        with torch.no_grad():
            for target, value in patches:
                _exchange(target, value, before)
        yield
    except BaseException:
        with torch.no_grad():
            for target, value in reversed(before):
                target.copy_(value)
        for module, grafts in seats:
            if isinstance(module, Adapted):
                strip(module)
            dress(module, grafts)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        model._forward_pre_hooks.update(hooks)
        remember(model, record)
        raise


def _exchange(one: Tensor, other: Tensor, before: list[tuple[Tensor, Tensor]]) -> None:
    """Swap two tensors piece by piece; ``before`` always tells what was in ``one``."""
    piece = _PIECE if one.device.type == "cpu" else _PIECE_ELSEWHERE
    rows = max(1, piece * len(one) // max(1, one.numel()))
    for here, there in zip(torch.split(one, rows), torch.split(other, rows), strict=True):
        held = here.clone()
        before.append((here, held))
        here.copy_(there)
        there.copy_(held)
        before[-1] = here, there
