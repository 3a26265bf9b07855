from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from surgery.anatomy.types import Layout, indices
from surgery.operations.rows import Block, as_matrix, as_weight, assemble, blocks, take

CHANNELS = 24


@st.composite
def partitions(draw: st.DrawFn) -> list[list[int]]:
    """Disjoint sets of channels, each in any order: contiguous, interleaved, or arbitrary."""
    owner = draw(st.lists(st.integers(0, 3), min_size=CHANNELS, max_size=CHANNELS))
    groups = [[c for c in range(CHANNELS) if owner[c] == group] for group in range(3)]
    return [draw(st.permutations(g)) if draw(st.booleans()) else g for g in groups if g]


def as_rows(channels: list[int]) -> tuple[tuple[int, int, int], ...]:
    return tuple((c, c + 1, 1) for c in channels)


@given(partitions(), st.integers(0, 2))
def test_assemble_is_a_scatter_in_value_and_gradient(groups: list[list[int]], dim: int) -> None:
    parts, expected = [], torch.zeros(CHANNELS, 2, 3)
    for i, channels in enumerate(groups):
        part = torch.randn(len(channels), 2, 3, generator=torch.Generator().manual_seed(i))
        expected[channels] = part
        parts.append((blocks(as_rows(channels), CHANNELS), part.movedim(0, dim).requires_grad_()))
    result = assemble(parts, CHANNELS, dim)
    assert torch.equal(result, expected.movedim(0, dim))
    weight = torch.randn(result.shape, generator=torch.Generator().manual_seed(9))
    (result * weight).sum().backward()
    for (_, part), channels in zip(parts, groups, strict=True):
        assert torch.equal(part.grad, weight.movedim(dim, 0)[channels].movedim(0, dim))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (((0, 24, 1),), Block(1, 24, 0, 24)),
        (((8, 16, 1),), Block(1, 24, 8, 8)),
        (((0, 4, 1), (12, 16, 1)), Block(2, 12, 0, 4)),
        (((1, 24, 3),), Block(8, 3, 1, 1)),
        (((0, 4, 1), (4, 8, 1)), Block(1, 24, 0, 8)),
    ],
)
def test_regular_rows_are_one_block(
    rows: tuple[tuple[int, int, int], ...], expected: Block
) -> None:
    assert blocks(rows, CHANNELS) == (expected,)


def test_irregular_rows_fall_into_runs() -> None:
    rows = ((0, 4, 1), (8, 12, 1))
    assert blocks(rows, CHANNELS) == (Block(1, 24, 0, 4), Block(1, 24, 8, 4))


@pytest.mark.parametrize(
    ("layout", "shape"),
    [(Layout.OUT_IN, (6, 4)), (Layout.IN_OUT, (4, 6)), (Layout.CONV, (6, 4, 1, 1))],
)
def test_layouts_round_trip_and_rows_are_outputs(layout: Layout, shape: tuple[int, ...]) -> None:
    weight = torch.arange(24.0).reshape(shape)
    matrix = as_matrix(weight, layout)
    assert matrix.shape == (6, 4)
    assert torch.equal(as_weight(matrix, layout, weight.shape), weight)
    rows = ((1, 6, 2),)
    assert indices(rows) == [1, 3, 5]
    assert torch.equal(take(matrix, rows), matrix[1::2])
