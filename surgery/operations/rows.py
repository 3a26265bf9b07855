"""Output channels as blocks: where a projection's rows lie, as views and one concatenation.

Adding into slices in place makes autograd copy the whole gradient once a slice; laying the parts
side by side and adding once costs a third of that backward, and is plain functional code to
torch.compile.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from surgery.anatomy.types import Layout, Rows, indices


@dataclass(frozen=True)
class Block:
    """The channels ``[start, start + length)`` of each of ``count`` periods of ``period`` channels.

    One run of rows is a block with one period; the query rows of GPT-NeoX, interleaved head by
    head, are a block with as many periods as heads.
    """

    count: int
    period: int
    start: int
    length: int

    @property
    def size(self) -> int:
        """Number of channels."""
        return self.count * self.length


def blocks(rows: Rows, total: int) -> tuple[Block, ...]:
    """Cover ``rows`` of a weight with ``total`` output channels by as few blocks as their pattern
    allows.

    The blocks, one after the other, hold the channels in the order of ``rows``.
    """
    runs = runs_of(rows)
    period = runs[1][0] - runs[0][0] if len(runs) > 1 else total
    start, length = runs[0]
    regular = all(run == (start + i * period, length) for i, run in enumerate(runs))
    if regular and period * len(runs) == total and start + length <= period:
        return (Block(len(runs), period, start, length),)
    return tuple(Block(1, total, start, length) for start, length in runs)


def assemble(parts: Iterable[tuple[Sequence[Block], Tensor]], total: int, dim: int) -> Tensor:
    """Lay parts into ``total`` channels along ``dim``, zero where no part lies. Differentiable.

    Args:
        parts: Disjoint blocks, each with a tensor that holds their channels along ``dim``.
        total: Channels of the result.
        dim: The channel dimension.
    """
    grids: dict[tuple[int, int], list[tuple[Block, Tensor]]] = defaultdict(list)
    for where, tensor in parts:
        pieces = (
            torch.split(tensor, [block.size for block in where], dim)
            if len(where) > 1
            else [tensor]
        )
        for block, piece in zip(where, pieces, strict=True):
            grids[block.count, block.period].append((block, piece))
    dim = dim % piece.ndim
    layers = [_grid(count, period, held, dim) for (count, period), held in grids.items()]
    return layers[0] if len(layers) == 1 else torch.stack(layers).sum(0)


def has_matrix(weight: Tensor) -> bool:
    """Whether an ``(out, in)`` matrix is a view of ``weight``; not of every one whose dimensions were exchanged."""
    try:
        as_matrix(weight, Layout.OUT_IN)
    except RuntimeError:
        return False
    return True


def as_matrix(weight: Tensor, layout: Layout) -> Tensor:
    """``weight`` as ``(out, in)``, itself or a view; dimensions beyond the first are the other side."""
    matrix = weight if weight.ndim == 2 else weight.view(weight.shape[0], -1)
    return matrix.t() if layout is Layout.IN_OUT else matrix


def as_weight(matrix: Tensor, layout: Layout, shape: torch.Size) -> Tensor:
    """An ``(out, in)`` matrix in the layout of the weight, of which ``shape`` is the shape."""
    return (matrix.t() if layout is Layout.IN_OUT else matrix).reshape(shape)


def take(matrix: Tensor, rows: Rows) -> Tensor:
    """The given rows of an ``(out, in)`` matrix: a view where they are one run, or a copy."""
    if len(rows) == 1 and rows[0][2] == 1:
        return matrix[rows[0][0] : rows[0][1]]
    return matrix.index_select(0, torch.tensor(indices(rows), device=matrix.device))


def runs_of(rows: Rows) -> list[tuple[int, int]]:
    """Maximal runs of consecutive channels as ``(start, length)``, in the order of ``rows``."""
    runs: list[tuple[int, int]] = []
    for start, stop, step in rows:
        own = [(start, stop - start)] if step == 1 else [(c, 1) for c in range(start, stop, step)]
        for first, length in own:
            if runs and first == sum(runs[-1]):
                first, before = runs.pop()
                length += before
            runs.append((first, length))
    return runs


def rest_of(rows: Rows, total: int) -> Rows:
    """The channels of ``total`` that are in none of ``rows``."""
    edges = [(0, 0), *sorted(runs_of(rows)), (total, 0)]
    gaps = [(start + length, after) for (start, length), (after, _) in pairwise(edges)]
    return tuple((start, stop, 1) for start, stop in gaps if start < stop)


def _grid(count: int, period: int, held: list[tuple[Block, Tensor]], dim: int) -> Tensor:
    """Concatenate the parts of one grid inside its period, with zeros in the gaps."""
    pieces: list[Tensor] = []
    filled = 0
    for block, tensor in sorted(held, key=lambda pair: pair[0].start):
        folded = torch.unflatten(tensor, dim, (count, block.length))
        pieces += _gap(folded, block.start - filled, dim + 1)
        pieces.append(folded)
        filled = block.start + block.length
    pieces += _gap(pieces[-1], period - filled, dim + 1)
    whole = torch.cat(pieces, dim + 1) if len(pieces) > 1 else pieces[0]
    return whole.flatten(dim, dim + 1)


def _gap(like: Tensor, channels: int, dim: int) -> list[Tensor]:
    if channels == 0:
        return []
    shape = list(like.shape)
    shape[dim] = channels
    return [like.new_zeros(()).expand(shape)]
