"""Recomposition, for SRLoRA and its symmetric form alike."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from surgery.adapters import get
from surgery.errors import PlanError, StateError


def observe(adapter, seed=0):
    """One backward pass of a random function of the update, taken into the scores."""
    adapter.zero_grad()
    generator = torch.Generator().manual_seed(seed)
    gradient = torch.randn(adapter.out_features, adapter.in_features, generator=generator)
    b, a = adapter.factors()
    ((b @ a) * gradient).sum().backward()
    adapter.observe()


def change(adapter):
    """W - W0, (out, in), float64."""
    c, d = adapter.correction()
    return c.double() @ d.double() + adapter.delta()


@settings(max_examples=20, deadline=None)
@given(
    i=st.integers(4, 16),
    o=st.integers(4, 16),
    rank=st.integers(1, 4),
    gamma=st.sampled_from([0.25, 0.5, 1.0]),
    alpha=st.sampled_from([None, 3.0]),
)
def test_the_function_stays_over_every_switch(recomposed, trained, i, o, rank, gamma, alpha):
    spare = min(i, o) - rank
    assume(spare == 0 or spare >= round(gamma * rank))
    adapter = trained(recomposed, i, o, rank=rank, gamma=gamma, alpha=alpha, target_rank=min(i, o))
    for switch in range(adapter.switches):
        observe(adapter, switch)
        before = change(adapter)
        assert len(adapter.recompose()) == adapter.swap
        torch.testing.assert_close(change(adapter), before, rtol=0, atol=1e-5)
    b, a = adapter.total()
    assert b.shape[1] <= 2 * adapter.target_rank
    torch.testing.assert_close(b.double() @ a.double(), change(adapter), rtol=0, atol=1e-12)


def test_the_weakest_pairs_are_swapped_and_no_others(recomposed, trained):
    adapter = trained(recomposed, 20, 20, rank=6, target_rank=12)
    observe(adapter)
    scores = adapter.scores()
    parameters = {name: (p.detach().clone(), dim) for name, (p, dim) in adapter.pairs().items()}
    swapped = adapter.recompose()
    kept = [k for k in range(6) if k not in swapped]
    assert len(swapped) == 3
    assert scores[swapped].max() < scores[kept].min()
    for name, (before, dim) in parameters.items():
        moved = (before != adapter.pairs()[name][0]).movedim(dim, 0).reshape(6, -1)
        assert moved[swapped].all()
        assert not moved[kept].any()


def test_score_of_a_pair_is_the_sum_of_its_means(trained):
    adapter = trained("srlora", 5, 7, rank=3)
    observe(adapter)
    s_b, s_a = (adapter.importance[name].score() for name in "BA")
    for k in range(3):
        want = sum(float(s_b[i, k]) for i in range(7)) / 7
        want += sum(float(s_a[k, j]) for j in range(5)) / 5
        assert abs(float(adapter.scores()[k]) - want) < 1e-7


def test_pairs_are_born_on_the_next_unused_directions(recomposed, started, weight_of):
    adapter = started(recomposed, 16, 12, rank=4, target_rank=12)
    u, s, vh = torch.linalg.svd(weight_of(16, 12).double(), full_matrices=False)
    for first in range(4, 12, 2):
        observe(adapter, first)
        swapped = adapter.recompose()
        b, a = adapter.factors()
        born = b[:, swapped].double() @ a[swapped].double()
        place = slice(first, first + 2)
        want = (u[:, place] * s[place]) @ vh[place]
        torch.testing.assert_close(born, want, rtol=0, atol=1e-5)
    used = adapter.delta()
    assert torch.linalg.matrix_rank(used, atol=1e-4) == 4


def test_scores_start_anew_after_a_switch(recomposed, trained):
    adapter = trained(recomposed, 12, 12, rank=4)
    observe(adapter)
    assert (adapter.scores() > 0).all()
    adapter.recompose()
    assert not adapter.scores().any()


def test_without_gradients_nothing_is_observed(recomposed, trained):
    adapter = trained(recomposed, 12, 12, rank=4)
    adapter.observe()
    assert not adapter.scores().any()


def test_directions_run_out(recomposed, trained):
    adapter = trained(recomposed, 12, 12, rank=4, target_rank=9)
    assert (adapter.swap, adapter.switches) == (2, 2)
    sizes = []
    for left in (2, 1, 0):
        assert adapter.switches_left == left
        sizes.append(len(adapter.recompose()))
    assert sizes == [2, 2, 0]
    before = copy.deepcopy(adapter.state_dict())
    assert len(adapter.recompose()) == 0
    assert all(torch.equal(t, before[name]) for name, t in adapter.state_dict().items())


def test_pairs_beyond_the_last_direction_are_refused_before_anything_moves(recomposed, trained):
    adapter = trained(recomposed, 16, 16, rank=4, target_rank=7)
    adapter.switch(torch.tensor([0, 1]))
    before = copy.deepcopy(adapter.state_dict())
    with pytest.raises(StateError, match="2 pairs cannot move on"):
        adapter.switch(torch.tensor([2, 3]))
    assert all(torch.equal(value, before[name]) for name, value in adapter.state_dict().items())


def test_resumes_in_the_middle_from_the_state_dict(recomposed, trained, weight_of):
    adapter = trained(recomposed, 12, 10, rank=4, target_rank=10)
    observe(adapter)
    adapter.recompose()
    observe(adapter, 1)
    twin = get(recomposed)(12, 10, rank=4, target_rank=10)
    twin.read_base(weight_of(12, 10))
    twin.load_state_dict(adapter.state_dict())
    for one in (adapter, twin):
        observe(one, 2)
    assert torch.equal(adapter.recompose(), twin.recompose())
    assert torch.equal(change(adapter), change(twin))


def test_four_times_the_rank_is_visited_unless_there_are_fewer_directions(recomposed):
    kind = get(recomposed)
    assert kind(64, 64, rank=8).target_rank == 32
    assert kind(64, 20, rank=8).target_rank == 20
    assert kind(64, 64, rank=1, gamma=0.1).swap == 1


RANKS = "recomposition needs rank <= target_rank <= min(in, out), here 4 <= ... <= 10"
REMEDIES = {
    "target_rank": "choose a target_rank between 4 and 10, or leave it out",
    "gamma": "choose gamma in (0, 1], usually 0.5",
    "beta1": "choose beta1 and beta2 in [0, 1), usually 0.85",
    "beta2": "choose beta1 and beta2 in [0, 1), usually 0.85",
}


@pytest.mark.parametrize(
    ("option", "wrong"),
    [
        ("target_rank", 3), ("target_rank", 11), ("gamma", 0.0), ("gamma", 1.5),
        ("beta1", 1.0), ("beta2", 1.0), ("beta1", -0.1), ("beta2", -0.1),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_are_refused(recomposed, option, wrong):
    with pytest.raises(PlanError, match=r"does not fit|no share|do not fit") as caught:
        get(recomposed)(10, 12, rank=4, **{option: wrong})
    assert caught.value.remedy == REMEDIES[option]
    assert caught.value.why == (RANKS if option == "target_rank" else caught.value.why)


def test_the_ledger_has_room_for_every_switch_and_no_more(recomposed):
    adapter = get(recomposed)(20, 20, rank=4, target_rank=10)
    assert adapter.ledger.A.shape[0] == 4 + 2 * (10 - 4)


@pytest.mark.parametrize("decays", [{"beta1": 0.0}, {"beta2": 0.0}, {"beta1": 0.0, "beta2": 0.0}])
def test_a_decay_of_zero_forgets_at_once_and_is_allowed(recomposed, decays):
    get(recomposed)(10, 12, rank=4, **decays)


def test_a_target_rank_without_room_for_a_switch_is_refused(recomposed):
    with pytest.raises(PlanError, match="no room for a switch") as caught:
        get(recomposed)(20, 20, rank=8, target_rank=10)
    assert "at least 12" in caught.value.remedy
    assert get(recomposed)(20, 20, rank=8, target_rank=12).switches == 1
    assert get(recomposed)(9, 20, rank=8).switches == 0, (
        "by default there is as much room as there is"
    )
