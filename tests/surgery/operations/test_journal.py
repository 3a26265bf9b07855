"""What was kept comes back, whatever its size, dtype or strides."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from surgery.operations import journal
from surgery.operations.journal import Journal

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
VIEWS = [lambda m: m, lambda m: m.t(), lambda m: m[::2], lambda m: m[:, 1:]]


@settings(deadline=None)
@example([(torch.float32, 1, 1, lambda m: m), (torch.float64, 1, 1, lambda m: m[:, 1:])], 1)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(DTYPES), st.integers(1, 9), st.integers(1, 9), st.sampled_from(VIEWS)
        ),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from([1, 100, 2**12]),
)
def test_every_view_gets_its_bits_back(asked, chunk: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "_CHUNK", chunk)
        tensors = [torch.randn(rows, columns).to(dtype) for dtype, rows, columns, _ in asked]
        before = [tensor.clone() for tensor in tensors]
        kept = Journal()
        for tensor, (*_, view) in zip(tensors, asked, strict=True):
            kept.keep(view(tensor))
            view(tensor).fill_(7)
        kept.restore()
    assert all(map(torch.equal, tensors, before))


def test_what_was_kept_first_is_written_back_last() -> None:
    weight = torch.arange(6.0).view(2, 3)
    kept = Journal()
    for value in (7.0, 8.0):
        kept.keep(weight)
        weight.fill_(value)
    kept.restore()
    assert torch.equal(weight, torch.arange(6.0).view(2, 3))
