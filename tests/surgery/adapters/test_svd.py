"""The leading singular directions, against the full decomposition in float64."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surgery.adapters import krylov, svd
from surgery.adapters.svd import is_few, leading
from surgery.errors import StateError


def spectrum(out_features, in_features, values, seed=0):
    """A weight with the given singular values."""
    generator = torch.Generator().manual_seed(seed)
    u, _ = torch.linalg.qr(torch.randn(out_features, len(values), generator=generator).double())
    v, _ = torch.linalg.qr(torch.randn(in_features, len(values), generator=generator).double())
    return (u * values.double()) @ v.T


def with_gap(count, short):
    return torch.cat([torch.linspace(3, 2, count), torch.linspace(1, 0.1, short - count)])


def angles(weight, u, s, vh):
    """Principal angle (its sine) of each leading span that ends at a gap of a hundredth, either side."""
    exact_u, exact_s, exact_vh = torch.linalg.svd(weight.double(), full_matrices=False)
    for j in range(1, min(len(s) + 1, len(exact_s))):
        if exact_s[j - 1] - exact_s[j] < krylov.GAP * exact_s[j - 1]:
            continue
        for ours, exact in ((u[:, :j], exact_u[:, :j]), (vh[:j].T, exact_vh[:j].T)):
            off = ours.double() - exact @ (exact.T @ ours.double())
            yield float(torch.linalg.matrix_norm(off, 2))


# a few directions of a wide enough weight take the iteration, many take the full decomposition
@pytest.mark.parametrize(
    ("out", "in_", "count"), [(480, 440, 8), (440, 500, 8), (40, 30, 8), (30, 40, 30)]
)
def test_spans_the_leading_subspaces(out, in_, count):
    short = min(out, in_)
    weight = spectrum(out, in_, with_gap(min(count, short - 1), short))
    u, s, vh = leading(weight.float(), count)
    found = list(angles(weight, u, s, vh))
    assert found and max(found) < 1e-3
    exact = torch.linalg.svdvals(weight)
    torch.testing.assert_close(s.double(), exact[:count], rtol=1e-4, atol=1e-5)
    for ours in (u, vh.T):
        torch.testing.assert_close(ours.T @ ours, torch.eye(count), rtol=0, atol=1e-4)


@settings(max_examples=12, deadline=None)
@given(
    out=st.integers(170, 260),
    in_=st.integers(170, 260),
    count=st.integers(1, 16),
    decay=st.floats(0.005, 0.5),
    outlier=st.sampled_from([1.0, 10.0, 100.0]),
    seed=st.integers(0, 99),
)
def test_small_gaps_and_outliers_like_those_of_trained_weights(
    out, in_, count, decay, outlier, seed
):
    """Power laws with ragged steps: one power iteration after the other would not tell them apart."""
    short = min(out, in_)
    ragged = 1 + 0.03 * torch.rand(short, generator=torch.Generator().manual_seed(seed))
    values = torch.arange(1, short + 1.0) ** -decay * ragged.cumprod(0).flip(0) / ragged.prod()
    values[0] *= outlier
    weight = spectrum(out, in_, values, seed).float()
    found = krylov.leading(weight, count)
    assert found is None or max(angles(weight, *found), default=0.0) < 1e-3


def test_the_iteration_serves_large_weights_and_says_when_it_cannot():
    weight = spectrum(240, 200, with_gap(8, 200)).float()
    assert krylov.leading(weight, 8) is not None
    few = spectrum(450, 440, torch.ones(6)).float()  # fewer directions than asked for
    assert is_few(few, 8)
    assert krylov.leading(few, 8) is None
    u, s, vh = leading(few, 8)
    torch.testing.assert_close((u * s) @ vh, few, rtol=0, atol=1e-5)
    assert all(t.isfinite().all() for t in leading(torch.zeros(450, 440), 8))


@pytest.mark.parametrize("power", [-100, -40, 60, 110])
def test_the_scale_of_a_weight_changes_no_bit_of_its_directions(power):
    weight = torch.randn(450, 440, generator=torch.Generator().manual_seed(3))
    u, s, vh = leading(weight, 8)
    scaled_u, scaled_s, scaled_vh = leading(weight * 2.0**power, 8)
    assert torch.equal(scaled_u, u) and torch.equal(scaled_vh, vh)
    assert torch.equal(scaled_s, s * 2.0**power)


def test_it_does_not_settle_before_the_directions_are_right(monkeypatch):
    """Without its certificate it would stop at the first try, with other directions."""
    values = torch.cat([torch.linspace(1.2, 1.02, 8), torch.linspace(1, 0.9, 492)])
    weight = spectrum(500, 500, values).float()
    assert max(angles(weight, *leading(weight, 8))) < 1e-3
    monkeypatch.setattr(krylov, "_lacking", lambda residual, s: 0.0)
    assert max(angles(weight, *leading(weight, 8))) > 1e-3


def test_a_flat_spectrum_is_still_nearly_the_best_approximation():
    weight = torch.randn(450, 440, generator=torch.Generator().manual_seed(3))
    u, s, vh = leading(weight, 8)
    best = torch.linalg.svdvals(weight.double())[8:].norm()
    assert (weight - (u * s) @ vh).norm() < 1.01 * best


@pytest.mark.parametrize("shape", [(450, 440), (20, 30)])
def test_signs_are_fixed(shape):
    u, _, _ = leading(torch.randn(*shape, generator=torch.Generator().manual_seed(1)), 6)
    assert (u.gather(0, u.abs().argmax(0, keepdim=True)) > 0).all()


def test_equal_weights_give_equal_directions_and_leave_global_randomness_alone():
    weight = torch.randn(450, 440, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    first = leading(weight, 6)
    state = torch.get_rng_state()
    torch.manual_seed(1)
    again = leading(weight, 6)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("shape", [(450, 440), (20, 30)])
def test_what_is_not_finite_is_refused(shape, value):
    weight = torch.ones(shape)
    weight[3, 2] = value
    with pytest.raises(StateError, match="not finite"):
        leading(weight, 4)


def test_the_basis_grows_by_one_block_at_a_time(monkeypatch):
    widths, beyond = [], krylov._beyond

    def watched(basis, block):
        widths.append(block.shape[1])
        return beyond(basis, block)

    monkeypatch.setattr(krylov, "_beyond", watched)
    weight = spectrum(400, 400, torch.logspace(0, -3, 400)).float()
    assert krylov.leading(weight, 8) is not None
    assert len(widths) >= 4 and set(widths) == {krylov.BLOCK}


def test_a_basis_that_would_cost_as_much_as_everything_is_given_up(monkeypatch):
    """Orthonormal columns: no direction leads, so nothing settles."""
    sizes = []

    def watched(weight, basis, image, count):
        sizes.append(basis.shape[1])
        return

    monkeypatch.setattr(krylov, "_within", watched)
    assert krylov.leading(spectrum(300, 200, torch.ones(200)).float(), 8) is None
    assert sizes and max(sizes) <= 0.7 * 200
    steps = [b / a for a, b in pairwise(sizes)]
    assert sizes[0] >= 8 + krylov.FIRST and all(step >= krylov._GROWTH - 0.02 for step in steps)


def test_the_next_try_is_made_where_the_residual_should_have_fallen(monkeypatch):
    """1.9 digits are five blocks, 0.1 would be one but is a fifth of the basis at least."""
    sizes, lacking = [], iter([1.9, 0.1, -1.0])

    def watched(residual, s):
        return next(lacking)

    def counted(weight, basis, image, count):
        sizes.append(basis.shape[1])
        return within(weight, basis, image, count)

    within = krylov._within
    monkeypatch.setattr(krylov, "_lacking", watched)
    monkeypatch.setattr(krylov, "_within", counted)
    weight = torch.randn(600, 500, generator=torch.Generator().manual_seed(0))
    assert krylov.leading(weight, 8) is not None
    assert sizes == [72, 112, 136]


def settled(columns, values):
    residual = torch.tensor(columns, dtype=torch.float64).T
    return krylov._lacking(residual, torch.tensor(values, dtype=torch.float64)) <= 0


def test_what_is_settled_is_judged_at_gaps_alone_and_by_what_leads_them(monkeypatch):
    monkeypatch.setattr(krylov, "GAP", 0.25)
    monkeypatch.setattr(krylov, "ANGLE", 0.5)
    still, off, far = [0.0, 0.0], [0.15, 0.2], [9.0, 9.0]
    # a gap of just a quarter, and an error, 0.25, of just a quarter of that gap
    assert settled([off], [4.0, 3.0])
    assert not settled([[0.2, 0.2]], [4.0, 3.0])
    # where there is no gap, no direction is better than its neighbour
    assert settled([far], [4.0, 3.5]) and settled([far], [400.0, 399.0])
    # what comes behind a gap is another's, what leads it adds up
    assert settled([still, far], [8.0, 4.0, 3.9])
    assert settled([still, [0.3, 0.4]], [8.0, 7.9, 5.5])
    assert not settled([[0.3, 0.4], [0.3, 0.4]], [8.0, 7.9, 5.5])


@pytest.mark.parametrize("rank", [5, 7])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_weight_of_lower_rank_has_no_direction_for_every_pair(scale, rank):
    weight = scale * spectrum(200, 180, torch.linspace(3, 1, rank)).float()
    basis = torch.linalg.qr(torch.cat([weight, torch.randn(200, 60)], 1)[:, :90])[0]
    assert krylov._within(weight, basis, basis.T @ weight, 8) is None
    assert krylov._within(weight, basis, basis.T @ weight, 4) is not None


def test_squares_that_overflow_settle_nothing():
    weight = 1e25 * spectrum(200, 180, torch.linspace(3, 1, 180)).float()
    basis = torch.linalg.qr(torch.randn(200, 60))[0]
    assert krylov._within(weight, basis, basis.T @ weight, 8) is None


def test_directions_are_few_up_to_a_fifth_with_the_columns_beyond_them(monkeypatch):
    few = torch.empty(5 * (8 + krylov.FIRST), 900)
    assert is_few(few, 8) and not is_few(few[1:], 8) and not is_few(few, 9)
    monkeypatch.setattr(
        krylov, "leading", lambda *_: pytest.fail("a full decomposition is cheaper")
    )
    svd.decompose(torch.randn(40, 30), 8)


def test_what_is_not_finite_is_refused_with_what_to_do():
    with pytest.raises(StateError) as caught:
        leading(torch.full((4, 4), float("inf")), 2)
    assert caught.value.what == "the weight is not finite, so it has no singular directions"
    assert caught.value.remedy == (
        "load the pretrained weights again, or choose an adapter that starts at zero"
    )
