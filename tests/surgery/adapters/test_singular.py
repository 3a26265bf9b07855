"""The singular start: the function stays, and the whole change is one LoRA."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surgery.adapters import get


@settings(max_examples=15, deadline=None)
@given(i=st.integers(2, 16), o=st.integers(2, 16), alpha=st.sampled_from([None, 1.0, 8.0]))
def test_factors_are_the_best_approximation_of_the_weight(
    singular_start, started, weight_of, i, o, alpha
):
    kind, options = singular_start
    rank = min(i, o) // 2
    adapter = started(kind, i, o, rank=rank, alpha=alpha, **options)
    u, s, vh = torch.linalg.svd(weight_of(i, o).double(), full_matrices=False)
    best = (u[:, :rank] * s[:rank]) @ vh[:rank]
    torch.testing.assert_close(adapter.delta(), best, rtol=0, atol=1e-5)


def test_total_is_the_exact_change_as_one_lora(singular_start, trained):
    kind, options = singular_start
    adapter = trained(kind, 12, 10, rank=3, alpha=5.0, **options)
    c, d = adapter.correction()
    change = c.double() @ d.double() + adapter.delta()
    b, a = adapter.total()
    assert change.norm() > 0.1
    assert not b.requires_grad
    torch.testing.assert_close(b.double() @ a.double(), change, rtol=0, atol=1e-13)


def test_starting_again_starts_from_nothing(singular_start, trained, started, weight_of):
    kind, options = singular_start
    adapter = trained(kind, 12, 10, rank=3, **options)
    adapter.start(weight_of(12, 10), torch.Generator().manual_seed(1))
    fresh = started(kind, 12, 10, rank=3, **options).state_dict()
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in adapter.state_dict().items())


@pytest.mark.parametrize("shape", [(10, 12), (12, 10)])
def test_a_weight_of_zeros_starts_unchanged_and_trains(singular_start, shape):
    """B = A = 0 would be a saddle that no gradient leads out of."""
    kind, options = singular_start
    out, inside = shape
    adapter = get(kind)(inside, out, rank=3, **options)
    adapter.start(torch.zeros(shape))
    assert not adapter.delta().any()
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2, weight_decay=0)
    x, y = torch.randn(7, inside), torch.randn(7, out)
    for _ in range(3):
        optimizer.zero_grad()
        (adapter(x) - y).square().mean().backward()
        optimizer.step()
    assert adapter.delta().norm() > 1e-4
