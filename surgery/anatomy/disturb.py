"""Noise on the rows of a projection, to see what moves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from surgery.anatomy.types import Layout, Projection, indices


@contextmanager
def disturbed(model: nn.Module, projection: Projection) -> Iterator[None]:
    """Noise on the rows of a projection, and on their bias, inside; afterwards every bit is back."""
    channels = torch.tensor(indices(projection.rows))
    with torch.no_grad(), _untied(model, projection):
        changed = targets(model, projection)
        kept = [tensor.detach().clone() for tensor, _ in changed]
        for tensor, along in changed:
            _add_noise(tensor, along, channels.to(tensor.device))
        try:
            yield
        finally:
            for (tensor, _), before in zip(changed, kept, strict=True):
                tensor.copy_(before)


@contextmanager
def _untied(model: nn.Module, projection: Projection) -> Iterator[None]:
    """Inside, the module of a projection owns what it shares with others (a decoder tied to its encoder)."""
    owner = model.get_submodule(projection.module)
    shared = dict(owner._parameters) if projection.tied_to else {}
    for name, parameter in shared.items():
        if parameter is not None:
            owner._parameters[name] = nn.Parameter(parameter.clone(), requires_grad=False)
    try:
        yield
    finally:
        owner._parameters.update(shared)


def targets(model: nn.Module, projection: Projection) -> list[tuple[Tensor, int]]:
    """The weight of a projection and its bias, each with the dimension of its output channels in a matrix."""
    owner = model.get_submodule(projection.module)
    weight = getattr(owner, projection.parameter)
    dim = 1 if projection.layout is Layout.IN_OUT else 0
    found: list[tuple[Tensor, int]] = [(weight, dim)]
    bias, channels = getattr(owner, "bias", None), weight.flatten(1).shape[dim]
    # A weight alone moves nothing where its input is zero (DETR's first decoder layer).
    if projection.bias and isinstance(bias, Tensor) and bias.shape == (channels,):
        found.append((bias, 0))
    return found


def _add_noise(tensor: Tensor, dim: int, channels: Tensor) -> None:
    matrix = tensor.reshape(tensor.shape[0], -1)  # a copy, where it does not lie in memory as one
    rows = matrix.index_select(dim, channels)
    spread = tensor.float().std(correction=0).clamp_min(1e-3).item()
    noise = torch.randn(rows.shape, generator=torch.Generator().manual_seed(1), device="cpu")
    tensor.copy_(
        matrix.index_copy(dim, channels, rows + noise.to(tensor) * 3 * spread).view(tensor.shape)
    )
