"""The polar form."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surgery.adapters import Polar, SymLoRA
from surgery.errors import PlanError

sizes = st.integers(2, 16)


@settings(max_examples=20, deadline=None)
@given(i=sizes, o=sizes, start=st.sampled_from(["zero", "singular"]))
def test_update_is_symmetric_once_the_isometry_is_taken_off(trained, weight_of, i, o, start):
    adapter = trained("polar", i, o, rank=2, start=start)
    u, _, vh = torch.linalg.svd(weight_of(i, o).double(), full_matrices=False)
    isometry = u @ vh
    torch.testing.assert_close(adapter.R.double(), isometry, rtol=0, atol=1e-4)
    delta = adapter.delta()
    inner = isometry.T @ delta if o >= i else delta @ isometry.T
    torch.testing.assert_close(inner, inner.T, rtol=0, atol=1e-4)
    outer = isometry @ inner if o >= i else inner @ isometry
    torch.testing.assert_close(outer, delta, rtol=0, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(i=sizes, o=sizes)
def test_trains_rank_times_the_shorter_side_plus_one(i, o):
    adapter = Polar(i, o, rank=2)
    assert sum(p.numel() for p in adapter.parameters()) == 2 * (min(i, o) + 1)


def test_symlora_is_the_case_of_no_isometry():
    polar, sym = Polar(10, 10, rank=3), SymLoRA(10, 10, rank=3)
    polar.start(torch.diag(torch.linspace(1, 2, 10)), torch.Generator().manual_seed(0))
    with torch.no_grad():
        polar.l.normal_()
    sym.load_state_dict(dict(polar.named_parameters()))
    torch.testing.assert_close(polar.delta(), sym.delta(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("i", "o"), [(12, 9), (9, 12)])
def test_singular_start_is_pissa_with_one_factor_for_two(started, weight_of, i, o):
    """Its Q is PiSSA's A, or B where out < in: a step of it moves the weight as far as a step of that."""
    adapter = started("polar", i, o, rank=3, alpha=6.0, start="singular")
    pissa = started("pissa", i, o, rank=3, alpha=6.0)
    torch.testing.assert_close(adapter.delta(), pissa.delta(), rtol=0, atol=1e-5)
    torch.testing.assert_close(adapter.Q, pissa.A.T if o >= i else pissa.B)
    values = torch.linalg.svdvals(weight_of(i, o))[:3].flip(0)
    torch.testing.assert_close(2.0 * adapter.eigenvalues(), values)


@pytest.mark.parametrize(("i", "o"), [(256, 256), (192, 768), (768, 192)])
def test_moves_as_far_as_lora_at_the_same_learning_rate(started, drift, i, o):
    polar, lora = (drift(started(kind, i, o, rank=8)) for kind in ("polar", "lora"))
    assert 0.5 * lora < polar < 2 * lora


def test_the_isometry_is_not_saved_but_read_from_the_base(trained, weight_of):
    adapter = trained("polar", 8, 12, rank=2)
    assert not any(name.startswith("R") for name in adapter.state_dict())
    before = adapter.R.clone()
    adapter.read_base(weight_of(8, 12, seed=7))
    assert not torch.allclose(adapter.R, before, atol=0.1)
    adapter.read_base(weight_of(8, 12))
    assert torch.equal(adapter.R, before)


def test_dropout_and_unknown_starts_are_refused():
    with pytest.raises(PlanError, match="dropout does not go with the singular start"):
        Polar(8, 8, rank=2, start="singular", dropout=0.1)
    with pytest.raises(PlanError, match="unknown start 'svd'"):
        Polar(8, 8, rank=2, start="svd")
