"""From float64 to the dtype of a weight, rounded once."""

from __future__ import annotations

import torch
from torch import Tensor


def rounded(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """``exact``, float64, as the nearest values of ``dtype``, ties to even.

    torch goes from float64 to 16-bit types by way of float32 and so rounds twice: one float16 in
    16,000 comes out as the wrong neighbour. That can only happen within one float32 step of a tie, where
    the two float32 beside the nearest round differently; those few are rounded again, rightly.
    """
    if torch.finfo(dtype).bits >= 32:
        return exact.to(dtype)
    near = exact.float()
    bits, value = near.view(torch.int32), near.to(dtype)
    above, below = ((bits + step).view(torch.float32).to(dtype) for step in (1, -1))
    close = (above != below).nonzero(as_tuple=True)
    value[close] = _by_odd(exact[close], dtype)
    return value


def _by_odd(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounding to odd on the way leaves the last step alone to decide.

    Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums", 2008.
    """
    near = exact.float()
    bits = near.view(torch.int32)  # one more is one step away from zero, whatever the sign
    inward = torch.where(near.abs() > exact.abs(), -1, 1).to(bits)
    odd = torch.where((near != exact) & (bits % 2 == 0), bits + inward, bits)
    return odd.view(torch.float32).to(dtype)
