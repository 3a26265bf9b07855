"""The leading singular directions of a weight: exact where that is cheap, randomised where it is not."""

from __future__ import annotations

import torch
from torch import Tensor

OVERSAMPLING = 24
POWER_ITERATIONS = 6
_EXACT_SHARE = 0.25


def leading(
    weight: Tensor, count: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The ``count`` largest singular triplets of ``weight``.

    Randomised subspace iteration (Halko, Martinsson, Tropp, arXiv 0909.4061, algorithm 4.4) where
    the directions are few, a full SVD where they are a quarter of the shorter side or more. Signs are fixed
    (the largest entry of each left vector is positive), so that equal weights start equal runs.

    Args:
        weight: (out, in), float32 or wider, on any device.
        count: Number of triplets, at most min(out, in).
        generator: Source of the random start, on the CPU; None uses a fixed seed.

    Returns:
        U (out, count), S (count,), Vh (count, in), in the type of ``weight``.
    """
    short = min(weight.shape)
    if count + OVERSAMPLING >= short * _EXACT_SHARE:
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    else:
        u, s, vh = _randomised(weight, count + OVERSAMPLING, generator)
    u, s, vh = u[:, :count], s[:count], vh[:count]
    signs = _signs(u)
    return u * signs, s, vh * signs[:, None]


def _randomised(
    weight: Tensor, width: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    generator = generator or torch.Generator().manual_seed(0)
    probe = torch.randn(weight.shape[1], width, generator=generator).to(weight)
    basis, _ = torch.linalg.qr(weight @ probe)
    for _ in range(POWER_ITERATIONS):
        basis, _ = torch.linalg.qr(weight.T @ basis)
        basis, _ = torch.linalg.qr(weight @ basis)
    u, s, vh = torch.linalg.svd(basis.T @ weight, full_matrices=False)
    return basis @ u, s, vh


def _signs(u: Tensor) -> Tensor:
    largest = u.gather(0, u.abs().argmax(0, keepdim=True))[0]
    return torch.where(largest < 0, -1.0, 1.0).to(u)
