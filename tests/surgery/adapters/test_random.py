"""Random orthonormal columns."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surgery.adapters.random import orthonormal, twins


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 30), columns=st.integers(1, 30), seed=st.integers(0, 99))
def test_columns_are_orthonormal_and_reproducible(rows, columns, seed):
    columns = min(rows, columns)
    q, again = (orthonormal(rows, columns, torch.Generator().manual_seed(seed)) for _ in range(2))
    torch.testing.assert_close(q.T @ q, torch.eye(columns), rtol=0, atol=1e-5)
    assert torch.equal(q, again)


def test_signs_are_random_too():
    """QR alone would fix the sign of the first entry; the uniform distribution has mean zero."""
    generator = torch.Generator().manual_seed(0)
    first = torch.stack([orthonormal(4, 2, generator)[0, 0] for _ in range(400)])
    assert abs(first.mean()) < 0.1


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 30), columns=st.integers(1, 30))
def test_twins_cancel(rows, columns):
    columns = min(rows, columns)
    q, signs = twins(rows, columns, torch.Generator().manual_seed(0))
    assert q.shape == (rows, columns)
    torch.testing.assert_close(q * signs @ q.T, torch.zeros(rows, rows), rtol=0, atol=1e-6)
    pairs = columns // 2
    assert torch.equal(q[:, :pairs], q[:, pairs : 2 * pairs]) and (signs[: 2 * pairs] != 0).all()
    torch.testing.assert_close(q.square().sum(0), torch.ones(columns))
