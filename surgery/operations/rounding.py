"""From float64 to the dtype of a weight, rounded once."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_SMALLEST = torch.iinfo(torch.int32).min


def round_into(out: Tensor, exact: Tensor) -> Tensor:
    """Write ``exact``, float64, into ``out`` of the same shape, rounded once to its dtype, ties to even.

    Both have two dimensions or more.

    torch goes from float64 to 16-bit types by way of float32 and so rounds twice: one float16 in
    16,000 comes out as the wrong neighbour. That happens only where the float32 lies exactly between two
    values of ``out``, and the float64 beside it: such places are found by their bits and rounded again.
    """
    if torch.finfo(out.dtype).bits >= 32:
        return out.copy_(exact)
    near = exact.float()
    out.copy_(near)
    places = _may_be_ties(near, out.dtype)
    if len(places[0]):
        out[places] = _by_odd(exact[places], out.dtype)
    return out


def _may_be_ties(near: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Places at which the bits that ``dtype`` drops from a float32 may be exactly one half of its last place.

    Those bits are a one and zeros, which at the top of an integer make the smallest there is. A minimum over
    each row finds it many times faster than a comparison of all, and most rows have none. Below its
    smallest normal number float16 drops more bits, of which only the zeros are looked at.
    """
    dropped = 24 - round(-math.log2(torch.finfo(dtype).eps)) - 1
    bits = near.view(torch.int32).bitwise_left_shift(32 - dropped)
    if torch.finfo(dtype).smallest_normal > torch.finfo(near.dtype).smallest_normal:
        bits |= _SMALLEST
    rows = (bits.amin(-1, keepdim=True) == _SMALLEST).squeeze(-1).nonzero(as_tuple=True)
    inside, columns = (bits[rows] == _SMALLEST).nonzero(as_tuple=True)
    return *(row[inside] for row in rows), columns


def _by_odd(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounding to odd on the way leaves the last step alone to decide.

    Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums", 2008.
    """
    near = exact.float()
    bits = near.view(torch.int32)  # one more is one step away from zero, whatever the sign
    inward = torch.where(near.abs() > exact.abs(), -1, 1).to(bits)
    odd = torch.where((near != exact) & (bits % 2 == 0), bits + inward, bits)
    return odd.view(torch.float32).to(dtype)
