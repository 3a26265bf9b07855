"""From float64 to the dtype of a weight, rounded once."""

from __future__ import annotations

import torch
from torch import Tensor

_EXPONENT = 0x7FF0_0000_0000_0000
"""The bits of a float64 that hold its exponent: alone, they are the power of two below it."""
_SIGN = -(2**63)
_HUGE = 2.0**200
"""Beyond every 16-bit type, and far enough from infinity to be multiplied."""


def round_into(out: Tensor, exact: Tensor, near: Tensor, scratch: Tensor) -> Tensor:
    r"""Write ``exact``, float64, into ``out``, rounded once to its dtype, ties to even.

    torch goes from float64 to 16-bit types by way of float32 and so rounds twice: one float16 in
    16,000 comes out as the wrong neighbour. So float64 itself rounds here: with u the distance of two
    neighbours of ``out`` around x, and :math:`M = 1.5 \cdot 2^{52} u`, the float64 sum x + M is a multiple of u, and
    the nearest one, so that (x + M) - M is x rounded (Dekker, 1971).

    Args:
        out: Any strides.
        exact: Of the same shape; it stays as it is.
        near: Becomes what ``out`` holds, as float64; what is beyond the range of 16 bits is not infinite yet.
        scratch: Another float64 of that shape.

    Returns:
        ``near``.
    """
    form = torch.finfo(out.dtype)
    if form.bits >= 32:
        return near.copy_(out.copy_(exact))
    bits, spare = exact.view(torch.int64), scratch.view(torch.int64)
    torch.bitwise_and(bits, _EXPONENT, out=spare)
    scratch.clamp_(form.smallest_normal, _HUGE)  # below it, neighbours keep their distance
    shift = 1.5 * 2.0**52 * form.eps
    torch.add(exact, scratch, alpha=shift, out=near).sub_(scratch, alpha=shift)
    near.view(torch.int64).bitwise_or_(torch.bitwise_and(bits, _SIGN, out=spare))  # M - M is +0
    out.copy_(near)
    return near
