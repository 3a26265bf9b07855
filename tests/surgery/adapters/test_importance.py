"""The importance formula against a loop over scalars."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surgery.adapters import importance as home
from surgery.adapters.importance import Importance


def naive(history, beta1, beta2):
    """One entry: history of (weight, gradient)."""
    mean = uncertainty = 0.0
    for weight, gradient in history:
        sensitivity = abs(weight * gradient)
        mean = beta1 * mean + (1 - beta1) * sensitivity
        uncertainty = beta2 * uncertainty + (1 - beta2) * abs(sensitivity - mean)
    return mean * uncertainty


@settings(max_examples=25, deadline=None)
@given(
    steps=st.integers(1, 5),
    beta1=st.floats(0, 0.99),
    beta2=st.floats(0, 0.99),
    seed=st.integers(0, 99),
)
def test_matches_a_loop_over_scalars(steps, beta1, beta2, seed):
    generator = torch.Generator().manual_seed(seed)
    importance = Importance(torch.Size((3, 2)), beta1, beta2)
    history = [torch.randn(2, 3, 2, generator=generator) for _ in range(steps)]
    for weight, gradient in history:
        importance.observe(weight, gradient)
    for i in range(3):
        for j in range(2):
            entry = [(float(w[i, j]), float(g[i, j])) for w, g in history]
            want = naive(entry, beta1, beta2)
            assert abs(float(importance.score()[i, j]) - want) < 1e-5 * (1 + want)


def test_half_precision_products_do_not_vanish():
    importance = Importance(torch.Size((1,)), 0.5, 0.5)
    tiny = torch.tensor([1e-5], dtype=torch.float16)
    importance.observe(tiny, tiny)
    assert importance.mean > 0


def test_resumes_from_its_buffers_and_forgets_on_request():
    first, second = (Importance(torch.Size((4,)), 0.85, 0.85) for _ in range(2))
    first.observe(torch.ones(4), torch.arange(4.0))
    second.load_state_dict(first.state_dict())
    for importance in (first, second):
        importance.observe(torch.ones(4), torch.arange(4.0).flip(0))
    assert torch.equal(first.score(), second.score())
    first.reset()
    assert not first.score().any()


def test_many_are_taken_in_together_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces, each with its own decays, and in any type."""
    monkeypatch.setattr(home, "_AT_ONCE", 12)
    shapes = [(3,), (2, 4), (5, 5), (1, 2), (4,)]

    def scores() -> list[Importance]:
        return [Importance(torch.Size(s), (0.5, 0.6)[i % 2], 0.8) for i, s in enumerate(shapes)]

    together, alone = scores(), scores()
    for _ in range(3):
        pairs = [(torch.randn(s).bfloat16(), torch.randn(s)) for s in shapes]
        home.observe((one, *pair) for one, pair in zip(together, pairs, strict=True))
        for one, pair in zip(alone, pairs, strict=True):
            sensitivity = (pair[0].float() * pair[1]).abs()
            one.mean.lerp_(sensitivity, 1 - one.beta1)
            one.uncertainty.lerp_((sensitivity - one.mean).abs(), 1 - one.beta2)
    for one, other in zip(together, alone, strict=True):
        assert one.score().any() and torch.equal(one.score(), other.score())


def test_many_are_taken_in_in_pieces_that_are_full_but_never_beyond_their_size(monkeypatch):
    monkeypatch.setattr(home, "_AT_ONCE", 10)
    group = [(object(), torch.zeros(size), torch.zeros(())) for size in (4, 6, 1, 12, 3, 7, 1, 9)]
    pieces = [[weight.numel() for _, weight, _ in piece] for piece in home._bounded(group)]
    assert pieces == [[4, 6], [1], [12], [3, 7], [1, 9]]
