"""Base plus low-rank update, summed in float64 and rounded once, a piece at a time.

A weight is read once, in pieces that stay in the processor's cache from the float64 sum to the rounded
value and the norms of what rounding took, so float64 costs arithmetic and no memory traffic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from surgery.operations.rounding import round_into

_PIECE = 2**17
"""Entries of a piece on each thread: a megabyte in float64."""
_PIECE_ELSEWHERE = 2**24
"""Entries of a piece on an accelerator, which wants large ones."""


@dataclass
class Squares:
    """Squared Frobenius norms, summed over pieces.

    Attributes:
        exact: Of the sums.
        error: Of what rounding took from them.
    """

    exact: float = 0.0
    error: float = 0.0

    def __iadd__(self, other: Squares) -> Squares:
        self.exact += other.exact
        self.error += other.error
        return self


def add_rounded(
    target: Tensor,
    base: Tensor,
    left: Tensor,
    right: Tensor,
    before_writing: Callable[[Tensor], object] = lambda view: None,
) -> Squares:
    """Write round(base + left @ right) into ``target``, rounded once to its dtype.

    Args:
        target: (count, length, in), any strides: count runs of rows.
        base: The same shape, dtype and device; it may be ``target`` itself.
        left: (count * length, k), float64.
        right: (k, in), float64.
        before_writing: Called with each part of ``target`` that is about to be written to, while the
            processor's cache still holds it.

    Returns:
        Squared norms; they are not finite where the values are not.
    """
    squares, room = Squares(), None
    left = left.view(*base.shape[:2], -1)
    right = right.t().contiguous().t()  # a CPU multiplies faster by few rows that lie as columns
    top = torch.finfo(target.dtype).max
    for periods, rows in _pieces(base):
        part, into, own = base[periods, rows], target[periods, rows], left[periods, rows]
        if room is None or room.shape[1:] != part.shape:
            room = part.new_empty((3, *part.shape), dtype=torch.float64)
        exact, near, scratch = room.unbind()
        _widen(exact, part).view(-1, base.shape[2]).addmm_(own.flatten(0, 1), right)
        total = _square(exact)
        before_writing(into)
        round_into(into, exact, near, scratch)
        if not math.sqrt(total) < top:  # only then may a value be beyond the range
            near.copy_(into)
        squares += Squares(total, _square(exact.sub_(near)))
    return squares


def product_square(left: Tensor, right: Tensor) -> float:
    """The squared Frobenius norm of ``left @ right`` by way of the small Gram matrices, k x k."""
    return max(0.0, float(((left.T @ left) * (right @ right.T)).sum()))


def _pieces(base: Tensor) -> Iterator[tuple[slice, slice]]:
    """Slices of the first two dimensions that cover ``base`` in pieces of bounded size."""
    count, length, width = base.shape
    on_cpu = base.device.type == "cpu"
    limit = _PIECE * torch.get_num_threads() if on_cpu else _PIECE_ELSEWHERE
    periods = max(1, limit // (length * width))
    rows = length if periods > 1 else max(1, min(length, limit // width))
    for first in range(0, count, periods):
        for row in range(0, length, rows):
            yield slice(first, first + periods), slice(row, row + rows)


def _widen(into: Tensor, values: Tensor) -> Tensor:
    """A CPU takes float16 to float64 one by one, but to float32 many at a time."""
    return into.copy_(values.float() if values.dtype is torch.float16 else values)


def _square(matrix: Tensor) -> float:
    flat = matrix.view(-1)
    return float(flat.dot(flat))
