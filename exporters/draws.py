"""More values of a kind: drawn from those that are there, or repeated."""

from __future__ import annotations

import torch
from torch import Tensor


def is_one_number(value: Tensor) -> bool:
    """Whether a floating point input is one finite number everywhere, 0 for example: nothing would show on it."""
    if not value.is_floating_point() or not value.numel():
        return False
    first = value.flatten()[0]
    return bool(first.isfinite()) and bool((value == first).all())


def draw(value: Tensor, shape: list[int], generator: torch.Generator) -> Tensor:
    """A tensor of that shape with values of ``value``; where they are one number, from there on upwards."""
    values = value.detach().cpu().flatten()
    if not len(values):
        return value.new_empty(shape)
    if is_one_number(values):
        span = values[0].abs().clamp(min=1)
        drawn = values[0] + span * torch.rand(shape, generator=generator, dtype=value.dtype)
        return drawn.to(value.device)
    chosen = torch.randint(len(values), shape, generator=generator)
    return values[chosen].to(value.device)


def repeat(value: Tensor, shape: list[int]) -> Tensor:
    """The same values at another shape: rows are repeated from the first on, columns from the last."""
    for dim, size in enumerate(shape):
        index = torch.arange(size, device=value.device)
        length = value.shape[dim]
        value = value.index_select(dim, index.clamp(max=length - 1) if dim else index % length)
    return value
