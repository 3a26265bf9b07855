"""The leading singular directions of a weight: as many as are needed, computed once."""

from __future__ import annotations

import torch
from torch import Tensor

from surgery.adapters import cache, krylov
from surgery.adapters.krylov import Triplets
from surgery.adapters.widths import uncast
from surgery.errors import StateError

_FEW = 5
"""The iteration needs some multiple of the directions asked for; below this one it is not faster."""


def leading(weight: Tensor, count: int) -> Triplets:
    """The ``count`` largest singular triplets of ``weight``.

    Block Krylov iteration where the directions are few (:mod:`surgery.adapters.krylov`), a full
    decomposition where they are many, or where the iteration cannot vouch for them. Either way the span of the
    first j is within a principal angle of 1e-3 of the exact one for every j at which the spectrum has a
    gap of a hundredth (down to a ten-thousandth of the largest value: below, float32 itself tells no directions
    apart). Signs are fixed (the largest entry of each left vector is positive) and no
    randomness of the caller's enters, so equal weights start equal runs. The triplets of large weights are
    kept on the disk (:mod:`surgery.adapters.cache`).

    Args:
        weight: (out, in), float32 or wider, on any device.
        count: Number of triplets, at most min(out, in).

    Returns:
        U (out, count), S (count,), Vh (count, in), in the type of ``weight``.

    Raises:
        StateError: If the weight is not finite.
    """
    if not weight.isfinite().all():
        raise StateError(
            "the weight is not finite, so it has no singular directions",
            remedy="load the pretrained weights again, or choose an adapter that starts at zero",
        )
    entry = cache.entry(weight, count)
    found = entry.read() if entry else None
    if found is None:
        found = decompose(weight, count)
        if entry:
            entry.write(found)
    # Copies, row by row: products of the same numbers that lie otherwise in memory round otherwise.
    row_by_row = torch.contiguous_format
    u, s, vh = (tensor.to(weight, copy=True, memory_format=row_by_row) for tensor in found)
    return u, s, vh


def is_few(weight: Tensor, count: int) -> bool:
    """Whether ``count`` directions of ``weight`` are so few that iterating for them is worth a try."""
    return _FEW * (count + krylov.FIRST) <= min(weight.shape)


@uncast()
def decompose(weight: Tensor, count: int) -> Triplets:
    """As :func:`leading`, for a finite matrix that will not come again: nothing is kept on the disk."""
    found = krylov.leading(weight, count) if is_few(weight, count) else None
    u, s, vh = found or torch.linalg.svd(weight, full_matrices=False)
    u, s, vh = u[:, :count], s[:count], vh[:count]
    signs = _signs(u)
    return u * signs, s, vh * signs[:, None]


def _signs(u: Tensor) -> Tensor:
    largest = u.gather(0, u.abs().argmax(0, keepdim=True))[0]
    return torch.where(largest < 0, -1.0, 1.0).to(u)
