"""Leading singular directions of a large weight, with a certificate that they are the right ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Triplets = tuple[Tensor, Tensor, Tensor]

GAP = 0.01
"""Two neighbouring singular values are apart if they differ by this share of the larger one."""
ANGLE = 1e-3
"""Largest principal angle, in radians, between a leading subspace that ends at a gap and the exact one."""
BLOCK = 8
FIRST = 8 * BLOCK
"""Columns beyond those asked for at which the certificate is first tried."""
_A_BLOCK_BRINGS = 0.4
"""Decimal digits of the residual, as trained and random weights lose them: it tells when to try again."""
_GROWTH = 1.2
"""A try costs as much as some blocks: so much larger is the basis at the next one, at least."""
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
    scale = _power_of_two(weight.abs().amax())
    weight = weight / scale  # its squares have to be finite, and are then those of any other scale
    generator, shape = torch.Generator().manual_seed(0), (weight.shape[1], BLOCK)
    probe = torch.randn(shape, generator=generator, device="cpu").to(weight)
    basis = torch.linalg.qr(weight @ probe)[0]
    image = basis.T @ weight
    next_try, limit = count + FIRST, int(min(weight.shape) * _SHARE)
    while (size := basis.shape[1]) <= limit:
        if size >= next_try:
            found = _within(weight, basis, image, count)
            if found is not None and found[1] <= 0:
                u, s, vh = found[0]
                return u, s * scale, vh
            blocks = math.ceil(found[1] / _A_BLOCK_BRINGS) if found is not None else 1
            next_try = max(size + blocks * BLOCK, int(size * _GROWTH))
        block = _beyond(basis, weight @ image[-BLOCK:].T)
        basis = torch.cat([basis, block], 1)
        image = torch.cat([image, block.T @ weight])
    return None


def _power_of_two(value: Tensor) -> Tensor:
    """The largest that is not above ``value``: dividing by it rounds nothing."""
    return torch.ldexp(torch.ones_like(value), value.frexp().exponent - 1)


def _beyond(basis: Tensor, block: Tensor) -> Tensor:
    """Orthonormal columns of what ``block`` adds to ``basis``; projecting twice is enough (Kahan)."""
    for _ in range(2):
        block = block - basis @ (basis.T @ block)
    orthonormal: Tensor = torch.linalg.qr(block)[0]
    return orthonormal


def _within(
    weight: Tensor, basis: Tensor, image: Tensor, count: int
) -> tuple[Triplets, float] | None:
    """The leading triplets of ``weight`` within ``basis``, ``image`` = basis^T W, and the digits that they lack."""
    squares, turns = torch.linalg.eigh((image @ image.T).double())
    s = squares.flip(0)[: count + 1].clamp_min(0).sqrt().to(weight)
    if not s[count - 1] > torch.finfo(s.dtype).eps * s[0]:  # nor is NaN a direction
        return None
    turns = turns.flip(1)[:, :count].to(weight)
    u, v = basis @ turns, (turns.T @ image).T / s[:count]
    off = u.T @ u - torch.eye(count, device=u.device, dtype=u.dtype)
    if off.abs().max() > _ORTHONORMAL:
        return None
    return (u, s[:count], v.T), _lacking(weight @ v - u * s[:count], s)


def _lacking(residual: Tensor, s: Tensor) -> float:
    """Digits by which the residual is too large for half of the angle, at every leading subspace that ends at a gap."""
    wrong = residual.square().sum(0).cumsum(0).sqrt()
    gaps = s[:-1] - s[1:]
    apart = gaps >= GAP * s[:-1]
    if not apart.any():
        return 0.0
    worst = (wrong / (ANGLE / 2 * gaps))[apart].max()
    return float(worst.clamp_min(torch.finfo(worst.dtype).tiny).log10())
