"""NaN, infinity, denormals, huge and tiny scales, and many cycles: nothing drifts, nothing is hidden."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import surgery
from benchmarks.switching import switched
from surgery.operations.adapted import adapters_of
from tests.trust.architectures import build, inputs
from tests.trust.conftest import Tally
from tests.trust.promises import bits, exact_weights, photograph, wrongly_rounded
from tests.trust.settings import examples, times
from tests.trust.small import BARE, WHOLE, disturb, plan_of, step

X = inputs(WHOLE)
KINDS = ("lora", "symlora", "srlora", "polar", "sym-srlora")
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_that_is_not_finite(kind: str, value: float, tally: Tally) -> None:
    """Adapted or refused, and undone to the same bits, NaN's payload included; folding says no."""
    model = build(WHOLE)
    with torch.no_grad():
        model.stack[0].mixer.packed.weight[3, 2] = value
    before = photograph(model)
    try:
        surgery.apply(model, plan=plan_of(WHOLE, kind), seed=0)
    except (surgery.SurgeryError, RuntimeError):  # no singular values of NaN
        assert photograph(model) == before
    else:
        with pytest.raises(surgery.StateError, match=r"not finite|diverged"):
            surgery.fold(model)
        surgery.undo(model)
    assert photograph(model) == before
    tally["cases"] += 1


@pytest.mark.parametrize("value", [NAN, INF])
def test_gradients_and_inputs_that_are_not_finite(value: float, tally: Tally) -> None:
    """The scores do not learn from them, and undo takes back what the optimizer made of them."""
    model = build(WHOLE)
    before = photograph(model)
    surgery.apply(model, plan=plan_of(WHOLE, "srlora"), seed=0)
    optimizer = torch.optim.SGD(surgery.parameter_groups(model), lr=0.1)
    recomposer = surgery.Recomposer(model.train(), optimizer, total_steps=4)
    step(model, X * value)
    recomposer.step()
    assert recomposer.skipped == 1
    scores = [a.scores() for _, a in adapters_of(model)]
    assert all((score == 0).all() for score in scores)
    optimizer.step()
    assert not all(p.isfinite().all() for p in model.parameters())
    with pytest.raises(surgery.StateError):
        surgery.fold(model)
    surgery.undo(model.eval())
    assert {**photograph(model), "grads": 0} == {**before, "grads": 0}
    tally["cases"] += 1


def test_sums_at_every_scale_are_rounded_once_or_refused(tally: Tally) -> None:
    """From denormals to the edge of overflow, in three dtypes."""

    @examples(40)
    @given(
        st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
        st.integers(-150, 127),
        st.integers(-75, 63),
        st.integers(0, 9),
    )
    def holds(dtype: torch.dtype, weight: int, factor: int, seed: int) -> None:
        model = build(WHOLE)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name in ("packed", "last"):
                p = getattr(model.stack[0].mixer, name).weight
                p.copy_(
                    torch.randn(p.shape, generator=generator, dtype=torch.float64) * 2.0**weight
                )
        model.to(dtype)
        if not all(p.isfinite().all() for p in model.parameters()):
            return
        before = photograph(model)
        surgery.apply(model, plan=plan_of(WHOLE, "lora"), seed=0)
        with torch.no_grad():
            for _, adapter in adapters_of(model):
                for p in adapter.parameters():
                    p.copy_(torch.randn(p.shape, generator=generator) * 2.0**factor)
        _fold_right(copy.deepcopy(model), dtype, tally)
        surgery.undo(model)
        assert photograph(model) == before
        tally["cases"] += 1

    holds()


def _fold_right(model: nn.Module, dtype: torch.dtype, tally: Tally) -> None:
    exact = list(exact_weights(model))
    info = torch.finfo(dtype)
    # Below this the largest number is the nearest.
    limit = info.max * (1 + info.eps / 2 / (2 - info.eps))
    if max(float(abs(total).max()) for _, total, _ in exact) >= limit:
        before = photograph(model)
        with pytest.raises(surgery.StateError, match="beyond the range"):
            surgery.fold(model)
        assert photograph(model) == before
        return
    surgery.fold(model)
    for name, total, _ in exact:
        assert wrongly_rounded(model.get_parameter(name), total) == 0
        tally["weights folded"] += total.size


@pytest.mark.parametrize("architecture", [WHOLE, BARE], ids=["module", "parameter"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_cycles_in_bfloat16(kind: str, architecture, tally: Tally) -> None:
    """Apply, train, undo, over and over: the bits of the first day. (A share of the thousand here.)"""
    model = build(architecture).bfloat16()
    before = photograph(model)
    for cycle in range(times(30)):
        surgery.apply(model, plan=plan_of(architecture, kind), seed=cycle)
        disturb(model, seed=cycle)
        surgery.undo(model)
        tally["cycles"] += 1
    assert photograph(model) == before


@pytest.mark.parametrize("kind", ["lora", "srlora"])
def test_many_folds_in_bfloat16_cost_one_rounding_each(kind: str, tally: Tally) -> None:
    """Against the running sum in float64: each fold adds at most half a unit in the last place."""
    model = build(WHOLE).bfloat16()
    for cycle in range(times(30)):
        surgery.apply(model, plan=plan_of(WHOLE, kind), seed=cycle)
        with torch.no_grad():
            for _, adapter in adapters_of(model):
                for p in adapter.parameters():
                    p.mul_(1.01)
        exact = list(exact_weights(model))
        surgery.fold(model)
        for name, total, _ in exact:
            assert wrongly_rounded(model.get_parameter(name), total) == 0
            tally["weights folded"] += total.size
        tally["cycles"] += 1


def test_a_fold_and_a_fold_of_the_opposite_come_home(tally: Tally) -> None:
    """In float32, an update and its negative, a thousand times: a walk of roundings, not a drift."""
    model = build(WHOLE)
    start = model.stack[0].mixer.packed.weight.detach().clone()
    cycles = times(20)
    for cycle in range(cycles):
        for sign in (1, -1):
            surgery.apply(model, plan=plan_of(WHOLE, "lora"), seed=cycle)
            with torch.no_grad():
                for _, adapter in adapters_of(model):
                    adapter.B.fill_(0.01 * sign)
            surgery.fold(model)
        tally["cycles"] += 2
    now = model.stack[0].mixer.packed.weight.detach()
    steps = (now - start).abs() / torch.finfo(torch.float32).eps / start.abs().clamp_min(0.01)
    assert float(steps.mean()) < 2 * cycles**0.5


def test_switches_do_not_add_up_errors_in_bfloat16(tally: Tally) -> None:
    curve = switched(times(12) if times(12) < 200 else 200)
    half_a_step = 2.0**-9
    assert max(curve["ours"]) < half_a_step
    assert curve["naive"][-1] > 2 * curve["ours"][-1]
    tally["cycles"] += len(curve["ours"])


def test_adapted_weights_of_negative_zero_come_back() -> None:
    """-0.0 equals 0.0 for torch.equal, but is another bit."""
    model = build(WHOLE)
    with torch.no_grad():
        model.out.bias.fill_(-0.0)
    before = bits(model.out.bias)
    surgery.apply(model, plan=plan_of(WHOLE, "lora"))
    with torch.no_grad():
        model.out.bias.fill_(0.0)
    surgery.undo(model)
    assert bits(model.out.bias) == before


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_at_every_scale(kind: str, tally: Tally) -> None:
    """Weights from denormals to the edge: a start, a fold rounded once or refused, and all bits back."""
    for dtype in (torch.float32, torch.bfloat16):
        for exponent in (-148, -140, -126, -70, 60, 110, 126):
            model = build(WHOLE)
            with torch.no_grad():
                for weight in (
                    model.stack[0].mixer.packed.weight,
                    model.stack[0].mixer.last.weight,
                ):
                    weight.copy_(weight.double().clamp(-1, 1) * 2.0**exponent)
            model.to(dtype)
            before = photograph(model)
            try:
                surgery.apply(model, plan=plan_of(WHOLE, kind), seed=0)
            except surgery.SurgeryError:
                assert photograph(model) == before
                continue
            assert all(p.isfinite().all() for _, a in adapters_of(model) for p in a.parameters())
            _fold_right(copy.deepcopy(model), dtype, tally)
            surgery.undo(model)
            assert photograph(model) == before
            tally["cases"] += 1
