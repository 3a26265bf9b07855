"""SymLoRA."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surgery.adapters import SymLoRA
from surgery.errors import PlanError


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 24), data=st.data())
def test_update_is_symmetric(trained, n, data):
    adapter = trained("symlora", n, n, rank=data.draw(st.integers(1, n)))
    torch.testing.assert_close(adapter.delta(), adapter.delta().T, rtol=0, atol=1e-5)


@pytest.mark.parametrize("orthonormal", [True, False])
def test_eigenvalues_are_those_of_the_update(started, trained, orthonormal):
    adapter = (started if orthonormal else trained)("symlora", 20, 20, rank=3, alpha=6.0)
    with torch.no_grad():
        adapter.l.copy_(torch.tensor([-0.2, 0.1, 0.3]))
    exact = torch.linalg.eigvalsh(adapter.delta())
    exact = exact[exact.abs().argsort(descending=True)][:3].sort().values
    torch.testing.assert_close(
        exact, 2.0 * adapter.eigenvalues().double().detach(), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("name", ["Q", "l"])
def test_a_run_that_diverged_has_no_eigenvalues(trained, name):
    adapter = trained("symlora", 20, 20, rank=3)
    with torch.no_grad():
        getattr(adapter, name)[0] = torch.inf
    assert adapter.eigenvalues().shape == (3,) and adapter.eigenvalues().isnan().all()


def test_at_zero_the_eigenvalues_are_what_is_trained(started):
    adapter = started("symlora", 20, 20, rank=3)
    with torch.no_grad():
        adapter.l.copy_(torch.tensor([-0.2, 0.1, 0.3]))
    torch.testing.assert_close(adapter.eigenvalues(), adapter.step * adapter.l)


@pytest.mark.parametrize(("i", "o"), [(6, 9), (9, 6)])
def test_rectangles_are_refused_or_truncated(trained, i, o):
    with pytest.raises(PlanError, match=rf"square projection, this one is {i} -> {o}") as caught:
        SymLoRA(i, o, rank=2)
    assert caught.value.why == "Q diag(L) Q^T is symmetric"
    assert caught.value.remedy == (
        "set rectangular: truncate in the policy (an extension of ours), or use lora or polar there"
    )
    cut = trained("symlora", i, o, rank=2, rectangular="truncate")
    whole = SymLoRA(9, 9, rank=2)
    whole.load_state_dict(cut.state_dict())
    torch.testing.assert_close(cut.delta(), whole.delta()[:o, :i])
    assert sum(p.numel() for p in cut.parameters()) == 2 * (9 + 1)


def test_unknown_starts_are_refused():
    with pytest.raises(PlanError, match="unknown start 'svd'") as caught:
        SymLoRA(6, 6, rank=2, start="svd")
    assert caught.value.remedy == "set start to one of zero, twins"


def test_unknown_treatment_of_rectangles_is_refused():
    with pytest.raises(PlanError, match="unknown treatment 'pad'") as caught:
        SymLoRA(6, 9, rank=2, rectangular="pad")
    assert caught.value.remedy == "set rectangular: error or truncate"


def test_half_of_the_weights_of_lora():
    assert sum(p.numel() for p in SymLoRA(768, 768, rank=8).parameters()) == 8 * 769


@pytest.mark.parametrize("start", ["zero", "twins"])
def test_moves_as_far_as_lora_at_the_same_learning_rate(started, drift, start):
    """Without the constant in L it would move 20 to 45 times less."""
    sym, lora = drift(started("symlora", 768, 768, start=start)), drift(started("lora", 768, 768))
    assert 0.5 * lora < sym < 2 * lora


def test_penalty_is_zero_for_orthonormal_columns_and_pulls_back_to_them(trained, started):
    assert started("symlora", 16, 16, rank=4).orthogonality_penalty() < 1e-10
    adapter = trained("symlora", 16, 16, rank=4)
    q = adapter.Q.detach().double()
    want = (q.T @ q - torch.eye(4)).square().sum()
    penalty = adapter.orthogonality_penalty()
    torch.testing.assert_close(penalty.double(), want, rtol=1e-4, atol=0)
    penalty.backward()
    with torch.no_grad():
        adapter.Q -= 0.01 * adapter.Q.grad
    assert adapter.orthogonality_penalty() < penalty


@pytest.mark.parametrize(("out", "in_"), [(7, 7), (5, 8), (8, 5)])
def test_a_gradient_gains_the_eigenvalues_of_its_symmetric_part(out, in_):
    gradient = torch.randn(out, in_)
    square = torch.zeros(8, 8) if out != in_ else torch.zeros(7, 7)
    square[:out, :in_] = gradient
    exact = torch.linalg.eigvalsh(0.5 * (square + square.T)).abs().sort(descending=True).values
    torch.testing.assert_close(
        SymLoRA.first_order_gains(gradient, torch.zeros_like(gradient), 4), exact[:4]
    )


def test_an_antisymmetric_gradient_gains_nothing():
    gradient = torch.randn(6, 6)
    assert (
        SymLoRA.first_order_gains(gradient - gradient.T, torch.zeros_like(gradient), 3).max() < 1e-6
    )


def test_the_penalty_is_where_and_what_the_factors_are():
    assert SymLoRA(6, 6, rank=2, device="meta").orthogonality_penalty().is_meta
    adapter = SymLoRA(6, 6, rank=2, dtype=torch.bfloat16)
    assert adapter.orthogonality_penalty().dtype is torch.bfloat16


def test_penalty_of_twins_starts_at_the_rank(started):
    penalty = started("symlora", 16, 16, rank=4, start="twins").orthogonality_penalty()
    torch.testing.assert_close(penalty, torch.tensor(4.0))
