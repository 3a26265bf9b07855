"""Taking back what failed in the middle: an operation is done, or the model is as it was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from surgery.operations.adapted import Adapted, adapted_modules, dress, strip
from surgery.operations.graft import Graft
from surgery.operations.journal import Journal
from surgery.operations.state import Record, remember


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
def folded_or_nothing(model: nn.Module, record: Record) -> Iterator[Journal]:
    """If what happens inside fails, the model is adapted again.

    Args:
        model: An adapted model; inside, its adapters may be taken out.
        record: Its record.

    Yields:
        A journal; what it keeps of the weights is written back.
    """
    seats: list[tuple[nn.Module, dict[str, Graft]]] = [
        (module, dict(module.grafts())) for _, module in adapted_modules(model)
    ]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    hooks = dict(model._forward_pre_hooks)
    journal = Journal()
    try:
        yield journal
    except BaseException:
        journal.restore()
        for module, grafts in seats:
            if isinstance(module, Adapted):
                strip(module)
            dress(module, grafts)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        model._forward_pre_hooks.update(hooks)
        remember(model, record)
        raise
