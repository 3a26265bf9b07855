"""The leading singular directions, against the full decomposition in float64."""

from __future__ import annotations

import pytest
import torch

from surgery.adapters.svd import leading


def spectrum(out_features, in_features, values, seed=0):
    """A weight with the given singular values."""
    generator = torch.Generator().manual_seed(seed)
    u, _ = torch.linalg.qr(torch.randn(out_features, len(values), generator=generator).double())
    v, _ = torch.linalg.qr(torch.randn(in_features, len(values), generator=generator).double())
    return (u * values.double()) @ v.T


def with_gap(count, short):
    return torch.cat([torch.linspace(3, 2, count), torch.linspace(1, 0.1, short - count)])


# a few directions of a wide enough weight take the randomised path, many take the exact one
@pytest.mark.parametrize(
    ("out", "in_", "count"), [(240, 200, 8), (200, 260, 8), (40, 30, 8), (30, 40, 30)]
)
def test_spans_the_leading_subspaces(out, in_, count):
    short = min(out, in_)
    weight = spectrum(out, in_, with_gap(min(count, short - 1), short))
    u, s, vh = leading(weight.float(), count)
    exact_u, exact_s, exact_vh = torch.linalg.svd(weight, full_matrices=False)
    torch.testing.assert_close(s.double(), exact_s[:count], rtol=1e-4, atol=1e-5)
    for ours, exact in ((u, exact_u[:, :count]), (vh.T, exact_vh[:count].T)):
        sines = torch.linalg.matrix_norm(ours.double() - exact @ (exact.T @ ours.double()), 2)
        assert sines < 1e-3
        torch.testing.assert_close(ours.T @ ours, torch.eye(count), rtol=0, atol=1e-4)


def test_a_flat_spectrum_is_still_nearly_the_best_approximation():
    weight = torch.randn(240, 200, generator=torch.Generator().manual_seed(3))
    u, s, vh = leading(weight, 8)
    best = torch.linalg.svdvals(weight.double())[8:].norm()
    assert (weight - (u * s) @ vh).norm() < 1.01 * best


@pytest.mark.parametrize("shape", [(240, 200), (20, 30)])
def test_signs_are_fixed(shape):
    u, _, _ = leading(torch.randn(*shape, generator=torch.Generator().manual_seed(1)), 6)
    assert (u.gather(0, u.abs().argmax(0, keepdim=True)) > 0).all()


def test_equal_weights_give_equal_directions_and_leave_global_randomness_alone():
    weight = torch.randn(240, 200, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    first = leading(weight, 6)
    state = torch.get_rng_state()
    torch.manual_seed(1)
    again = leading(weight, 6)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)
