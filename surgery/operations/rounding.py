"""From float64 to the dtype of a weight, rounded once."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def rounded(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """``exact``, float64, as the nearest values of ``dtype``, ties to even.

    torch goes from float64 to 16-bit types by way of float32 and so rounds twice: one float16 in
    16,000 comes out as the wrong neighbour. That happens only where the float32 lies exactly between two
    values of ``dtype``, and the float64 beside it: such places are found by their bits and rounded again.
    """
    if torch.finfo(dtype).bits >= 32:
        return exact.to(dtype)
    near = exact.float()
    value = near.to(dtype)
    places = _may_be_ties(near, dtype).nonzero(as_tuple=True)
    if len(places[0]):
        value[places] = _by_odd(exact[places], dtype)
    return value


def _may_be_ties(near: Tensor, dtype: torch.dtype) -> Tensor:
    """Where the bits that ``dtype`` drops from a float32 are exactly one half of its last place.

    float16 drops more of them below its smallest normal number: there every place counts as one.
    """
    dropped = 24 - round(-math.log2(torch.finfo(dtype).eps)) - 1
    ties: Tensor = (near.view(torch.int32) & (2**dropped - 1)) == 2 ** (dropped - 1)
    smallest = torch.finfo(dtype).smallest_normal
    if smallest > torch.finfo(near.dtype).smallest_normal:
        ties |= near.abs() < smallest
    return ties


def round_into(out: Tensor, exact: Tensor) -> Tensor:
    """Write ``exact``, float64, into ``out`` of the same shape, rounded once to its dtype."""
    wide = torch.finfo(out.dtype).bits >= 32
    return out.copy_(exact if wide else rounded(exact, out.dtype))


def _by_odd(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounding to odd on the way leaves the last step alone to decide.

    Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums", 2008.
    """
    near = exact.float()
    bits = near.view(torch.int32)  # one more is one step away from zero, whatever the sign
    inward = torch.where(near.abs() > exact.abs(), -1, 1).to(bits)
    odd = torch.where((near != exact) & (bits % 2 == 0), bits + inward, bits)
    return odd.view(torch.float32).to(dtype)
