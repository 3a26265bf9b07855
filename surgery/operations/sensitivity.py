"""What the loss says about frozen weights: their gradients, taken without leaving a trace on the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from surgery.anatomy.capture import unchanged
from surgery.anatomy.types import Projection
from surgery.errors import StateError, told_by
from surgery.operations.checks import weight_of
from surgery.operations.rows import as_matrix, take

Loss = Callable[[nn.Module, Any], Tensor]


def default_loss(model: nn.Module, batch: Any) -> Tensor:
    """The model's own loss of a mapping with labels, or the cross-entropy of ``(inputs, targets)``.

    Raises:
        StateError: If the batch is neither, or the model gives no loss.
    """
    if isinstance(batch, Mapping):
        try:
            loss = getattr(model(**batch), "loss", None)
        except TypeError as error:  # a forward that takes no labels
            raise _no_loss(told_by(error)) from error
        if isinstance(loss, Tensor):
            return loss
    elif isinstance(batch, Sequence) and len(batch) == 2:
        return F.cross_entropy(model(batch[0]), batch[1])
    raise _no_loss(
        f"it is a {type(batch).__name__}, and {type(model).__name__} gives no .loss for it"
    )


def _no_loss(why: str) -> StateError:
    remedy = (
        "pass a mapping with labels, a pair (inputs, targets), or loss=lambda model, batch: ..."
    )
    return StateError("no loss can be made from a batch", why=why, remedy=remedy)


def gradients(
    model: nn.Module, projections: Sequence[Projection], batches: Iterable[Any], loss: Loss
) -> list[Tensor]:
    """The gradient of the mean loss with respect to each projection's rows, ``(out, in)``, float32.

    The model runs in eval mode. Its flags, ``.grad``, buffers, mode and random state are afterwards what they
    were. One gradient of every weight is in memory at once.

    Raises:
        StateError: If there is no batch, or a loss is not finite.
    """
    weights = {p.weight_name: weight_of(model, p) for p in projections}
    sums = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in weights.items()}
    count = 0
    with _measuring(model, weights.values()):
        for batch in batches:
            value, count = loss(model, batch), count + 1
            _check_finite(value, count)
            found = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
            for total, gradient in zip(sums.values(), found, strict=True):
                if gradient is not None:
                    total += gradient
    if not count:
        raise StateError("there is no batch to measure on", remedy="pass a list of a few batches")
    return [take(as_matrix(sums[p.weight_name], p.layout), p.rows) / count for p in projections]


def rows_of(model: nn.Module, projection: Projection) -> Tensor:
    """A projection's rows of its weight, ``(out, in)``, float32."""
    weight = weight_of(model, projection).detach()
    return take(as_matrix(weight, projection.layout), projection.rows).float()


@contextmanager
def _measuring(model: nn.Module, weights: Iterable[nn.Parameter]) -> Iterator[None]:
    """Only ``weights`` ask for gradients inside; on leaving, every flag is what it was."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    wanted = {id(weight) for weight in weights}
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(id(parameter) in wanted)
        with unchanged(model), torch.enable_grad():
            yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _check_finite(value: Tensor, number: int) -> None:
    if value.numel() == 1 and torch.isfinite(value).all():
        return
    raise StateError(
        "the loss of a batch is no finite number",
        where=f"batch {number}",
        why=f"its shape is {tuple(value.shape)}" if value.numel() != 1 else f"it is {value.item()}",
        remedy="return one finite number from loss=, or measure in float32",
    )
