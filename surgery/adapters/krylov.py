"""Leading singular directions of a large weight, with a certificate that they are the right ones."""

from __future__ import annotations

import torch
from torch import Tensor

Triplets = tuple[Tensor, Tensor, Tensor]

GAP = 0.01
"""Two neighbouring singular values are apart if they differ by this share of the larger one."""
ANGLE = 1e-3
"""Largest principal angle, in radians, between a leading subspace that ends at a gap and the exact one."""
BLOCK = 16
FIRST = 4 * BLOCK
"""Columns beyond those asked for at which the certificate is first tried."""
_GROWTH = 1.35
_SHARE = 0.7
_ORTHONORMAL = 1e-4


def leading(weight: Tensor, count: int) -> Triplets | None:
    r"""The ``count`` largest singular triplets by randomised block Krylov iteration, or None.

    Musco and Musco (arXiv 1504.05477): an orthonormal basis of :math:`[W\Omega, (WW^T)W\Omega, \dots]` grows
    block by block, and the singular triplets of :math:`W` within it are taken (Rayleigh and Ritz). It
    stops when the residual :math:`R = WV - US` bounds what is wrong with every leading subspace that
    ends at a gap: by Wedin (1972) the angle is at most :math:`\|R_{:j}\|/(\sigma_j-\sigma_{j+1})`. Where
    the spectrum has no gap, no direction is better than its neighbour, and none is waited for.

    Args:
        weight: (out, in), finite.
        count: Number of triplets, less than min(out, in).

    Returns:
        U (out, count), S (count,), Vh (count, in); None if the basis would become so large that a full
        decomposition is cheaper, or the weight has fewer directions.
    """
    generator, shape = torch.Generator().manual_seed(0), (weight.shape[1], BLOCK)
    probe = torch.randn(shape, generator=generator, device="cpu").to(weight)
    block = basis = torch.linalg.qr(weight @ probe)[0]
    image = weight.T @ block
    tried_at, limit = count + FIRST, int(min(weight.shape) * _SHARE)
    while basis.shape[1] <= limit:
        if basis.shape[1] >= tried_at:
            found = _within(weight, basis, image, count)
            if found is not None:
                return found
            tried_at = int(basis.shape[1] * _GROWTH)
        block = _beyond(basis, weight @ image[:, -BLOCK:])
        basis = torch.cat([basis, block], 1)
        image = torch.cat([image, weight.T @ block], 1)
    return None


def _beyond(basis: Tensor, block: Tensor) -> Tensor:
    """Orthonormal columns of what ``block`` adds to ``basis``; projecting twice is enough (Kahan)."""
    for _ in range(2):
        block = block - basis @ (basis.T @ block)
    orthonormal: Tensor = torch.linalg.qr(block)[0]
    return orthonormal


def _within(weight: Tensor, basis: Tensor, image: Tensor, count: int) -> Triplets | None:
    """The leading triplets of ``weight`` within ``basis``, ``image`` = W^T basis, if they are settled."""
    squares, turns = torch.linalg.eigh((image.T @ image).double())
    s = squares.flip(0)[: count + 1].clamp_min(0).sqrt().to(weight)
    if s[count - 1] <= torch.finfo(s.dtype).eps * s[0]:
        return None
    turns = turns.flip(1)[:, :count].to(weight)
    u, v = basis @ turns, (image @ turns) / s[:count]
    off = u.T @ u - torch.eye(count, device=u.device, dtype=u.dtype)
    if off.abs().max() > _ORTHONORMAL or not _is_settled(weight @ v - u * s[:count], s):
        return None
    return u, s[:count], v.T


def _is_settled(residual: Tensor, s: Tensor) -> bool:
    """Whether every leading subspace that ends at a gap is within half of the angle allowed."""
    wrong = residual.square().sum(0).cumsum(0).sqrt()
    gaps = s[:-1] - s[1:]
    apart = gaps >= GAP * s[:-1]
    return bool((wrong <= ANGLE / 2 * gaps)[apart].all())
