"""More values of a kind: drawn from those that are there, or repeated."""

from __future__ import annotations

import torch
from torch import Tensor


def is_one_number(value: Tensor) -> bool:
    """Whether a floating point input is the same everywhere, zeros for example: nothing would show on it."""
    return (
        value.is_floating_point()
        and value.numel() > 0
        and bool((value == value.flatten()[0]).all())
    )


def draw(value: Tensor, shape: list[int], generator: torch.Generator) -> Tensor:
    """A tensor of that shape with values of ``value``; where they are one number, from there to 1 more."""
    values = value.detach().cpu().flatten()
    if not len(values):
        return value.new_empty(shape)
    if is_one_number(values):
        return (values[0] + torch.rand(shape, generator=generator, dtype=value.dtype)).to(
            value.device
        )
    chosen = torch.randint(len(values), shape, generator=generator)
    return values[chosen].to(value.device)


def repeat(value: Tensor, shape: list[int]) -> Tensor:
    """The same values at another shape: rows are repeated from the first on, columns from the last."""
    for dim, size in enumerate(shape):
        index = torch.arange(size, device=value.device)
        length = value.shape[dim]
        value = value.index_select(dim, index.clamp(max=length - 1) if dim else index % length)
    return value
