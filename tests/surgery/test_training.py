"""The recomposer: its schedule, the function it keeps, and the optimizer state it clears."""

from __future__ import annotations

import copy
import itertools
import logging
import math
import warnings

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from timm.optim import Lion
from torch import nn
from torch.nn import functional as F

import surgery
from surgery.adapters import Recomposed, get
from surgery.anatomy.types import Access, Layout
from surgery.errors import StateError
from surgery.operations.adapted import adapters_of, dress, strip
from surgery.operations.graft import Graft
from surgery.training import Recomposer

KINDS = ["srlora", "sym-srlora"]


def adapt(linear, kind, rows=None, **options):
    """Put one adapter per run of rows on a linear layer."""
    graft = Graft(Layout.OUT_IN, Access.MODULE, linear.out_features)
    graft.original = linear.weight.detach().clone()
    for slot, run in (rows or {"query": (0, linear.out_features, 1)}).items():
        part = linear.weight.detach()[slice(*run)].float()
        adapter = get(kind)(part.shape[1], part.shape[0], **options)
        adapter.start(part, torch.Generator().manual_seed(0))
        graft.place(slot, adapter, (run,))
    linear.weight.requires_grad_(False)
    linear.bias.requires_grad_(False)
    dress(linear, {"weight": graft}).refresh_base()


def network(kind="srlora", dtype=torch.float32, **options):
    """Two adapted layers; the first carries two adapters on its rows, as a fused projection does."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 10)).to(dtype)
    options = {"rank": 4, "target_rank": 10, **options}
    adapt(model[0], kind, {"query": (0, 10, 1), "value": (10, 20, 1)}, **options)
    adapt(model[2], kind, **options)
    return model


def batch(step, dtype=torch.float32):
    generator = torch.Generator().manual_seed(100 + step)
    return (torch.randn(16, n, generator=generator).to(dtype) for n in (12, 10))


def backward(model, step):
    x, target = batch(step, model[0].weight.dtype)
    F.mse_loss(model(x), target).backward()


def trainable(model):
    return [p for p in model.parameters() if p.requires_grad]


def adamw(model, **options):
    return torch.optim.AdamW(trainable(model), lr=1e-2, weight_decay=0.0, **options)


def momentum(model):
    return torch.optim.SGD(trainable(model), 0.05, momentum=0.9)


def train(model, optimizer, recomposer, steps):
    for step in steps:
        optimizer.zero_grad()
        backward(model, step)
        recomposer.step()
        optimizer.step()


def exact_weights(model):
    """W0 + corrections + deltas of every layer in float64: the function that is trained."""
    return [
        m.original(name).double() + assembled(graft)
        for m in (model[0], model[2])
        for name, graft in m.grafts()
    ]


def assembled(graft):
    """The adapters of a weight lie on consecutive rows here."""
    parts = []
    for _, adapter in graft.adapters():
        c, d = adapter.correction()
        parts.append(c.double() @ d.double() + adapter.delta())
    return torch.cat(parts)


@settings(max_examples=30, deadline=None)
@given(
    rank=st.integers(1, 4),
    spare=st.integers(0, 8),
    gamma=st.sampled_from([0.25, 0.5, 1.0]),
    total=st.integers(1, 30),
)
def test_switches_are_spread_evenly_and_never_on_the_last_step(rank, spare, gamma, total):
    swap = max(1, round(gamma * rank))
    assume(spare == 0 or spare >= swap)
    linear = nn.Linear(12, 12)
    adapt(linear, "srlora", rank=rank, target_rank=rank + spare, gamma=gamma)
    model = nn.Sequential(linear)
    recomposer = Recomposer(model, momentum(model), total_steps=total)
    for _ in range(total + 3):  # and none after the end of the schedule
        model.zero_grad()
        model(torch.ones(1, 12)).sum().backward()
        recomposer.step()
    switches = spare // swap
    due = {math.ceil(k * total / switches) for k in range(1, switches + 1)}
    assert [report.step for report in recomposer.history] == sorted(due - {total})
    assert all(not report.exhausted for report in recomposer.history)


@pytest.mark.parametrize("kind", KINDS)
def test_a_recomposition_keeps_the_function(kind):
    model = network(kind)
    optimizer = adamw(model)
    recomposer = Recomposer(model, optimizer, total_steps=12)
    switched = 0
    for step in range(12):
        optimizer.zero_grad()
        backward(model, step)
        x, _ = batch(50)
        before, output = exact_weights(model), model(x)
        report = recomposer.step()
        if report is not None:
            switched += 1
            assert report.step == step + 1
            assert report.swapped == dict.fromkeys([n for n, _ in adapters_of(model)], 2)
            assert report.pairs == 6
            for was, now in zip(before, exact_weights(model), strict=True):
                torch.testing.assert_close(now, was, rtol=0, atol=1e-5)
        torch.testing.assert_close(model(x), output, rtol=0, atol=1e-5)
        optimizer.step()
    assert switched == 2
    assert "6 pairs of 3 adapters" in str(recomposer.history[0])


@pytest.mark.parametrize("kind", KINDS)
def test_twenty_switches_round_a_bfloat16_weight_once(kind):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 48)).to(torch.bfloat16)
    original = model[0].weight.detach().clone()
    adapt(model[0], kind, rank=4, gamma=0.5, target_rank=4 + 2 * 21)
    optimizer = adamw(model)
    recomposer = Recomposer(model, optimizer, total_steps=42)
    for step in range(42):
        optimizer.zero_grad()
        x = torch.randn(8, 48, generator=torch.Generator().manual_seed(step)).bfloat16()
        model(x).float().square().mean().backward()
        recomposer.step()
        optimizer.step()
    assert len(recomposer.history) == 20
    ((_, adapter),) = adapters_of(model)
    c, d = adapter.correction()
    assert torch.equal(model[0].weight, (original.float() + c @ d).bfloat16())
    exact = original.double() + c.double() @ d.double()
    rounding = 2.0**-8 * exact.abs()
    assert ((model[0].weight.double() - exact).abs() <= rounding + 1e-6).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "make",
    [
        lambda model: adamw(model, foreach=True, amsgrad=True),
        lambda model: adamw(model, fused=True),
        momentum,
        lambda model: Lion(trainable(model), lr=1e-3),
        lambda model: Lion(trainable(model), lr=1e-3, foreach=True),
        lambda model: torch.optim.NAdam(trainable(model)),
    ],
    ids=["adamw foreach amsgrad", "adamw fused", "sgd", "lion", "lion foreach", "nadam"],
)
def test_state_and_gradient_of_the_swapped_pairs_are_cleared_and_nothing_else(kind, make):
    model = network(kind)
    optimizer = make(model)
    recomposer = Recomposer(model, optimizer, total_steps=12)
    train(model, optimizer, recomposer, range(3))
    optimizer.zero_grad()
    backward(model, 3)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    gradients = {p: p.grad.clone() for p in model.parameters() if p.requires_grad}
    states = copy.deepcopy(dict(optimizer.state.items()))  # by copied parameters, in order
    states = dict(zip(optimizer.state, states.values(), strict=True))
    assert recomposer.step() is not None
    names = {p: name for name, p in model.named_parameters()}
    for _, adapter in adapters_of(model):
        for parameter, dim in adapter.pairs().values():
            moved = (parameter != weights[names[parameter]]).movedim(dim, 0).reshape(4, -1).all(1)
            assert int(moved.sum()) == 2
            pairs = [parameter.grad, gradients[parameter]]
            now, was = optimizer.state[parameter], states[parameter]
            assert now.keys() == was.keys()
            tensors = [(now[k], was[k]) for k in now if was[k].shape == parameter.shape]
            assert tensors
            for current, before in [pairs, *tensors]:
                current, before = (t.movedim(dim, 0).reshape(4, -1) for t in (current, before))
                assert before.any(1).all()
                assert not current[moved].any()
                assert torch.equal(current[~moved], before[~moved])
            if "step" in was:
                assert now["step"] == was["step"]


def test_factored_moments_lose_the_entries_of_the_swapped_pairs():
    """Adafactor keeps one row and one column of B's moments: the pairs are along one of them."""
    model = network()
    optimizer = torch.optim.Adafactor(trainable(model), lr=1e-2)
    recomposer = Recomposer(model, optimizer, total_steps=12)
    train(model, optimizer, recomposer, range(3))
    backward(model, 3)
    before = copy.deepcopy([dict(optimizer.state[p]) for p in trainable(model)])
    weights = [p.detach().clone() for p in trainable(model)]
    assert recomposer.step() is not None
    dims = {id(p): dim for _, a in adapters_of(model) for p, dim in a.pairs().values()}
    for parameter, weight, was in zip(trainable(model), weights, before, strict=True):
        dim, now = dims[id(parameter)], optimizer.state[parameter]
        moved = (parameter != weight).movedim(dim, 0).reshape(4, -1).all(1)
        for name in ("row_var", "col_var"):
            if now[name].shape[dim] == 1:
                assert torch.equal(now[name], was[name])
                continue
            current, old = (t.movedim(dim, 0).reshape(4, -1) for t in (now[name], was[name]))
            assert old.any(1).all() and not current[moved].any()
            assert torch.equal(current[~moved], old[~moved])


def test_quantised_moments_are_left_alone_and_said(caplog):
    """Zero is a code in an 8-bit table, and not zero."""
    model = network()
    optimizer = momentum(model)
    for parameter in trainable(model):
        codes = torch.full(parameter.shape, 7, dtype=torch.uint8)
        optimizer.state[parameter]["state1"] = codes
    recomposer = Recomposer(model, optimizer, total_steps=3)
    backward(model, 0)
    assert recomposer.step() is not None
    assert "state1 is torch.uint8" in caplog.text
    assert all((state["state1"] == 7).all() for state in optimizer.state.values())


@pytest.mark.parametrize("kind", KINDS)
def test_under_a_grad_scaler_the_run_is_the_same(kind):
    """Scores see unscaled gradients, so the same pairs are swapped; a power of two rounds nothing."""
    runs = []
    for scaled in (False, True):
        model = network(kind)
        optimizer = momentum(model)
        recomposer = Recomposer(model, optimizer, total_steps=12)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=scaled)
        for step in range(12):
            optimizer.zero_grad()
            x, target = batch(step)
            scaler.scale(F.mse_loss(model(x), target)).backward()
            scaler.unscale_(optimizer)
            recomposer.step()
            scaler.step(optimizer)
            scaler.update()
        runs.append((model.state_dict(), [r.swapped for r in recomposer.history]))
    (one, swaps), (other, others) = runs
    assert len(swaps) == 2 and swaps == others
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_an_overflow_under_a_grad_scaler_skips_scores_and_step():
    model = network()
    optimizer = adamw(model)
    recomposer = Recomposer(model, optimizer, total_steps=12)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    before = copy.deepcopy(model.state_dict())
    x, target = batch(0)
    scaler.scale(F.mse_loss(model(x) * 1e6, target)).backward()
    scaler.unscale_(optimizer)
    recomposer.step()
    scaler.step(optimizer)
    assert recomposer.skipped == 1
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_gradient_accumulation_is_one_large_batch():
    """One call an optimizer step: the scores see the sum, whichever way it came about."""
    scores, weights = [], []
    for parts in (1, 4):
        model = network()
        optimizer = momentum(model)
        recomposer = Recomposer(model, optimizer, total_steps=12)
        for step in range(5):
            optimizer.zero_grad()
            for x, y in zip(*(t.chunk(parts) for t in batch(step)), strict=True):
                (F.mse_loss(model(x), y) / parts).backward()
            recomposer.step()
            optimizer.step()
        scores.append(torch.cat([a.scores() for _, a in adapters_of(model)]))
        weights.append(torch.cat([w.flatten() for w in exact_weights(model)]))
    torch.testing.assert_close(*scores, rtol=1e-4, atol=1e-12)
    torch.testing.assert_close(*weights, rtol=0, atol=1e-6)


def test_clipping_afterwards_changes_no_score_and_keeps_the_swapped_pairs_at_rest():
    models = [network(), network()]
    for model, clip in zip(models, (False, True), strict=True):
        optimizer = momentum(model)
        recomposer = Recomposer(model, optimizer, total_steps=3)
        backward(model, 0)
        report = recomposer.step()
        assert report is not None
        if clip:
            torch.nn.utils.clip_grad_norm_(trainable(model), 1e-3)
            assert torch.nn.utils.get_total_norm([p.grad for p in trainable(model)]) <= 1.01e-3
        for _, adapter in adapters_of(model):
            assert int((adapter.B.grad == 0).all(0).sum()) == adapter.swap
    for (_, one), (_, other) in zip(*map(adapters_of, models), strict=True):
        assert torch.equal(one.B, other.B)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_never_reaches_scores_or_switch(value):
    """Also where a switch is due in that very step: it goes by the scores of before."""
    model = network()
    recomposer = Recomposer(model, momentum(model), total_steps=6)
    backward(model, 0)
    assert recomposer.step() is None
    adapter = next(iter(adapters_of(model)))[1]
    adapter.B.grad[0, 0] = value
    assert recomposer.step() is not None
    assert recomposer.skipped == 1
    for _, each in adapters_of(model):
        assert each.scores().isfinite().all()
        assert each.B.isfinite().all() and each.A.isfinite().all()
    assert all(weight.isfinite().all() for weight in exact_weights(model))


def test_fp32_masters_take_the_new_values():
    model = network()
    optimizer = momentum(model)
    for parameter in optimizer.param_groups[0]["params"]:
        optimizer.state[parameter]["master_param"] = parameter.detach().double()
    recomposer = Recomposer(model, optimizer, total_steps=3)
    backward(model, 0)
    assert recomposer.step() is not None
    for parameter, state in optimizer.state.items():
        assert torch.equal(state["master_param"], parameter.double())


def test_newborn_pairs_stay_put_in_the_step_of_the_switch():
    model = network()
    optimizer = adamw(model)
    recomposer = Recomposer(model, optimizer, total_steps=12)
    train(model, optimizer, recomposer, range(3))
    backward(model, 3)
    before = [a.B.detach().clone() for _, a in adapters_of(model)]
    recomposer.step()
    switched = [a.B.detach().clone() for _, a in adapters_of(model)]
    optimizer.step()
    for (_, adapter), old, new in zip(adapters_of(model), before, switched, strict=True):
        born = (old != new).all(0)
        assert torch.equal(adapter.B[:, born], new[:, born])
        assert not (new == adapter.B)[:, ~born].any()


@pytest.mark.parametrize("stop", range(1, 15))
@pytest.mark.parametrize("kind", KINDS)
def test_resuming_is_the_same_run(kind, stop):
    whole = network(kind)
    optimizer = adamw(whole)
    recomposer = Recomposer(whole, optimizer, total_steps=15)
    train(whole, optimizer, recomposer, range(stop))
    saved = copy.deepcopy([part.state_dict() for part in (whole, optimizer, recomposer)])
    train(whole, optimizer, recomposer, range(stop, 15))

    again = network(kind)
    optimizer = adamw(again)
    resumed = Recomposer(again, optimizer, total_steps=99)
    for part, state in zip((again, optimizer, resumed), saved, strict=True):
        part.load_state_dict(state)
    train(again, optimizer, resumed, range(stop, 15))
    assert [r.step for r in resumed.history] == [step for step in (5, 10) if step > stop]
    ours, theirs = again.state_dict(), whole.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert torch.equal(again[2].weight, whole[2].weight)


def one_nan(model):
    next(iter(adapters_of(model)))[1].A.grad[0, 0] = float("nan")


def zeros(model):
    """What is left where clipping met an infinite norm of the head."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.zero_()


@pytest.mark.parametrize(("spoil", "said"), [(one_nan, "not finite"), (zeros, "all zero")])
def test_gradients_that_say_nothing_do_not_touch_the_scores(caplog, spoil, said):
    model = network()
    recomposer = Recomposer(model, momentum(model), total_steps=100)
    backward(model, 0)
    recomposer.step()
    scores = [adapter.scores() for _, adapter in adapters_of(model)]
    model.zero_grad()
    backward(model, 1)
    spoil(model)
    with caplog.at_level(logging.WARNING):
        recomposer.step()
    assert recomposer.skipped == 1
    assert recomposer.steps == 2
    assert f"step 2: gradients are {said}" in caplog.text
    for (_, adapter), before in zip(adapters_of(model), scores, strict=True):
        assert torch.equal(adapter.scores(), before)


def test_running_out_of_directions_is_said_once():
    model = network()
    for _, adapter in adapters_of(model):  # a second training goes on with a used-up adapter
        while adapter.switches_left:
            adapter.recompose()
    recomposer = Recomposer(model, momentum(model), total_steps=12)
    reports = []
    for step in range(12):
        model.zero_grad()
        backward(model, step)
        reports.append(recomposer.step())
    (report,) = filter(None, reports)
    assert report.swapped == {}
    assert set(report.exhausted) == {name for name, _ in adapters_of(model)}
    assert "no directions left in 0.adapters.weight.query" in str(report)


def test_each_owner_is_refreshed_once(monkeypatch):
    model = network()
    calls = []
    for owner in (model[0], model[2]):
        monkeypatch.setattr(owner, "refresh_base", lambda owner=owner: calls.append(owner))
    recomposer = Recomposer(model, momentum(model), total_steps=3)
    backward(model, 0)
    recomposer.step()
    assert calls == [model[0], model[2]]


def test_finds_the_adapters_of_a_compiled_model():
    model = network()
    compiled = torch.compile(model, backend="eager")
    recomposer = Recomposer(compiled, adamw(model), total_steps=3)
    x, target = batch(0)
    F.mse_loss(compiled(x), target).backward()
    before = compiled(x)
    assert recomposer.step().pairs == 6
    torch.testing.assert_close(compiled(x), before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_around_a_whole_step_leaves_the_weights_exact(kind):
    model = network(kind)
    recomposer = Recomposer(model, adamw(model), total_steps=8)
    with torch.autocast("cpu", torch.bfloat16):
        train(model, recomposer._optimizer, recomposer, range(8))
    assert recomposer.history
    for module in (model[0], model[2]):
        live = module.base("weight").detach().clone()
        module.refresh_base()
        assert torch.equal(module.base("weight"), live)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_recomposes_in_a_model_that_was_cast_afterwards(kind, dtype):
    model = network(kind).to(dtype)
    optimizer = adamw(model)
    recomposer = Recomposer(model, optimizer, total_steps=8)
    for step in range(4):
        optimizer.zero_grad()
        backward(model, step)
        before = exact_weights(model)
        recomposer.step()
        for one, two in zip(exact_weights(model), before, strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-2 if dtype.itemsize < 4 else 1e-7)
        optimizer.step()
    assert recomposer.history


def test_weight_decay_on_pretrained_factors_is_warned_of():
    model = network()
    with pytest.warns(UserWarning, match="wears away the pretrained weight"):
        Recomposer(model, torch.optim.AdamW(trainable(model)), total_steps=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        groups = surgery.parameter_groups(model, weight_decay=0.1)
        Recomposer(model, torch.optim.AdamW(groups), total_steps=5)


def test_a_step_after_the_adapters_were_taken_out_is_refused():
    model = network()
    recomposer = Recomposer(model, adamw(model), total_steps=5)
    backward(model, 0)
    strip(model[0])
    with pytest.raises(StateError, match="no longer in the model"):
        recomposer.step()
    assert recomposer.steps == 0


def test_one_average_needs_no_list():
    model = network()
    average = copy.deepcopy(model)
    recomposer = Recomposer(model, adamw(model), total_steps=2, averages=average)
    backward(model, 0)
    recomposer.step()
    cursors = [int(a.cursor) for _, a in adapters_of(average)]
    assert cursors == [int(a.cursor) for _, a in adapters_of(model)] and all(cursors)


def test_a_schedule_of_another_length_goes_on_as_it_began_and_says_so(caplog):
    model = network()
    state = Recomposer(model, adamw(model), total_steps=5).state_dict()
    other = Recomposer(model, adamw(model), total_steps=9)
    other.load_state_dict(state)
    assert other.total_steps == 5
    assert "goes on to step 5" in caplog.text


@pytest.mark.parametrize("total", [0, -1, None, 2.5, float("nan")])
def test_total_steps_must_be_a_positive_number(total):
    model = network()
    with pytest.raises(StateError, match=f"total_steps {total}"):
        Recomposer(model, adamw(model), total_steps=total)


def test_a_model_without_recomposing_adapters_is_refused():
    plain, pissa = nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4))
    adapt(pissa[0], "pissa", rank=2)
    for model in (plain, pissa):
        with pytest.raises(StateError, match="no adapter that recomposes"):
            Recomposer(model, adamw(model), total_steps=5)


def test_an_optimizer_of_other_parameters_is_refused():
    model = network()
    optimizer = adamw(model[2])
    with pytest.raises(StateError, match="does not train an adapter") as error:
        Recomposer(model, optimizer, total_steps=5)
    assert error.value.where == "0.adapters.weight.query"


def test_a_call_without_gradients_is_refused_and_not_counted():
    model = network()
    recomposer = Recomposer(model, adamw(model), total_steps=5)
    with pytest.raises(StateError, match="no adapter has a gradient"):
        recomposer.step()
    assert recomposer.steps == 0


def test_learns_while_it_switches():
    """A control against all of the above: the loss falls as far as without switches, or nearly."""
    losses = {}
    for target_rank in (4, 10):
        model = network(target_rank=target_rank)
        optimizer = adamw(model)
        recomposer = Recomposer(model, optimizer, total_steps=120)
        x, target = batch(0)
        start = F.mse_loss(model(x), target).item()
        for _ in range(120):
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), target)
            loss.backward()
            recomposer.step()
            optimizer.step()
        losses[target_rank] = loss.item() / start
    assert losses[10] < 0.5
    assert losses[10] < 1.5 * losses[4]


def test_every_recomposing_adapter_is_found_under_its_path():
    model = network()
    recomposer = Recomposer(model, adamw(model), total_steps=3)
    backward(model, 0)
    report = recomposer.step()
    for name in report.swapped:
        assert isinstance(model.get_submodule(name), Recomposed)
    assert len(set(itertools.chain(report.swapped))) == 3


def test_an_optimizer_of_some_adapters_is_refused_with_weight_decay_too():
    model = network()
    optimizer = torch.optim.AdamW(trainable(model[0]), weight_decay=0.01)
    with pytest.raises(StateError, match="does not train an adapter") as error:
        Recomposer(model, optimizer, total_steps=5)
    assert error.value.where == "2.adapters.weight.query"


def test_without_a_finite_gradient_nothing_moves_on(caplog):
    model = network()
    recomposer = Recomposer(model, momentum(model), total_steps=8)
    before = copy.deepcopy(model.state_dict())
    for step in range(4):
        model.zero_grad()
        backward(model, step)
        if step < 3:
            next(iter(adapters_of(model)))[1].A.grad[0, 0] = float("nan")
        with caplog.at_level(logging.WARNING):
            recomposer.step()
        if step == 2:
            assert "step 3: no gradient was observed" in caplog.text and not recomposer.history
            assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("dtype", "least", "most"),
    [
        (torch.float64, 0, 1e-15),
        (torch.float32, 1e-9, 1e-7),
        (torch.float16, 5e-5, 5e-4),
        (torch.bfloat16, 5e-4, 4e-3),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_recomposition_says_what_rounding_took(kind, dtype, least, most):
    model = network(kind, dtype)
    recomposer = Recomposer(model, momentum(model), total_steps=4)
    train(model, momentum(model), recomposer, range(4))
    for report in recomposer.history:
        assert least <= report.rounding <= most
        assert f"weights rounded by {report.rounding:.1e}" in str(report)


def test_steps_beyond_the_schedule_are_said_once(caplog):
    model = network()
    recomposer = Recomposer(model, momentum(model), total_steps=3)
    for step in range(6):
        model.zero_grad()
        backward(model, step)
        with caplog.at_level(logging.WARNING):
            recomposer.step()
    assert caplog.text.count("beyond total_steps") == 1 and "step 4 is" in caplog.text


def test_more_switches_than_steps_are_said(caplog):
    model = network(target_rank=10, rank=2)
    with caplog.at_level(logging.WARNING):
        Recomposer(model, momentum(model), total_steps=3)
    assert "8 switches do not fit into 3 steps" in caplog.text


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [*KINDS, "pissa"])
def test_a_state_dict_of_a_model_that_was_cast_afterwards_is_the_same_model(kind, dtype):
    one, other = ((network(kind) if kind in KINDS else pissas()).to(dtype) for _ in range(2))
    with torch.no_grad():
        for parameter in trainable(one):
            parameter.mul_(1.25)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for ours, theirs in zip((one[0], one[2]), (other[0], other[2]), strict=True):
        assert torch.equal(ours.base("weight"), theirs.base("weight"))
        assert torch.equal(ours.original("weight"), theirs.original("weight"))


def pissas():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 10))
    for linear in (model[0], model[2]):
        adapt(linear, "pissa", rank=4)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_rough_products_of_a_training_leave_the_frozen_weight_exact(kind):
    """On CPUs that know how, and on GPUs, "medium" is bfloat16 products; elsewhere it changes nothing."""
    model = network(kind)
    recomposer = Recomposer(model, adamw(model), total_steps=8)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        train(model, recomposer._optimizer, recomposer, range(8))
    finally:
        torch.set_float32_matmul_precision(before)
    assert recomposer.history
    for module in (model[0], model[2]):
        live = module.base("weight").detach().clone()
        module.refresh_base()
        assert torch.equal(module.base("weight"), live)
