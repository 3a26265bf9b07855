"""The sum of a weight and its update, piece by piece: exact, and the same however it is cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surgery.operations import sums
from surgery.operations.sums import add_rounded, product_square
from tests.trust.promises import wrongly_rounded

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(DTYPES),
    st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)),
    st.integers(1, 4),
    st.sampled_from([1, 7, 40, 2**16]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 99),
)
def test_every_value_is_the_nearest_and_the_norms_are_right(
    dtype, shape, rank, piece, transposed, in_place, seed
):
    generator = torch.Generator().manual_seed(seed)
    count, length, width = shape
    base = torch.randn(width, count * length, generator=generator).to(dtype).t()
    base = base.view(count, length, width) if transposed else base.contiguous().view(shape)
    left = torch.randn(count * length, rank, generator=generator, dtype=torch.float64)
    right = torch.randn(rank, width, generator=generator, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sums, "_PIECE", piece)
        value = base.clone() if in_place else torch.empty_like(base)
        squares = add_rounded(value, value if in_place else base, left, right)
    exact = base.double().reshape(-1, width).numpy().astype(np.longdouble)
    exact = exact + left.numpy().astype(np.longdouble) @ right.numpy().astype(np.longdouble)
    found = value.reshape(-1, width)
    assert value.shape == base.shape and value.dtype == dtype
    assert wrongly_rounded(found, exact) == 0
    off = found.double().numpy() - exact
    assert squares.exact == pytest.approx(float((exact**2).sum()))
    assert squares.error == pytest.approx(float((off**2).sum()), rel=1e-6, abs=1e-25)
    assert product_square(left, right) == pytest.approx(float((left @ right).square().sum()))


def test_an_update_that_cancels_has_no_negative_square():
    left = torch.randn(9, 3, dtype=torch.float64)
    right = torch.randn(3, 7, dtype=torch.float64)
    square = product_square(torch.cat([left, -left], 1), torch.cat([right, right]))
    assert 0 <= square < 1e-12
