"""What holds for every adapter."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from surgery.adapters import LoRA, get
from surgery.errors import PlanError

shapes = st.tuples(st.integers(1, 20), st.integers(1, 20)).flatmap(
    lambda shape: st.tuples(st.just(shape), st.integers(1, min(shape)))
)
few = settings(max_examples=25, deadline=None)


@few
@given(
    case=shapes, alpha=st.sampled_from([None, 1.0, 16.0]), batch=st.sampled_from([(), (3,), (2, 3)])
)
def test_forward_is_the_product_with_the_update(variant, trained, case, alpha, batch):
    (kind, options), ((i, o), rank) = variant, case
    adapter = trained(kind, i, o, rank=rank, alpha=alpha, **options)
    x = torch.randn(*batch, i, generator=torch.Generator().manual_seed(5))
    want = x.double() @ adapter.delta().T
    torch.testing.assert_close(adapter(x).double(), want, rtol=1e-4, atol=1e-4)


@few
@given(case=shapes)
def test_every_adapter_is_exactly_a_lora_of_its_rank(variant, trained, case):
    (kind, options), ((i, o), rank) = variant, case
    adapter = trained(kind, i, o, rank=rank, alpha=2.0, **options)
    lora = LoRA(i, o, rank=rank)
    b, a = adapter.factors()
    lora.load_state_dict({"B": b.detach(), "A": a.detach()})
    x = torch.randn(4, i)
    torch.testing.assert_close(lora(x), adapter(x))
    torch.testing.assert_close(lora.delta(), adapter.delta(), rtol=0, atol=1e-13)


@few
@given(case=shapes)
def test_zero_start_changes_nothing_at_all(zero_start, started, case):
    (kind, options), ((i, o), rank) = zero_start, case
    adapter = started(kind, i, o, rank=rank, **options)
    assert adapter.correction() is None
    assert not adapter.carries_base
    assert torch.equal(adapter.delta(), torch.zeros(o, i, dtype=torch.float64))
    assert not adapter(torch.randn(3, i)).any()


@few
@given(case=shapes)
def test_twins_change_nothing_but_by_rounding(twin_start, started, case):
    (kind, options), ((i, o), rank) = twin_start, case
    adapter = started(kind, i, o, rank=rank, **options)
    assert adapter.correction() is None and not adapter.carries_base
    assert adapter.delta().abs().max() < 1e-7
    assert adapter(torch.randn(3, i)).abs().max() < 1e-5


def test_twins_learn_with_all_of_their_weights_from_the_first_step(twin_start, started):
    """At zero, the columns would have no gradient yet."""
    kind, options = twin_start
    adapter, x = started(kind, 12, 12, rank=4, **options), torch.randn(16, 12)
    F.mse_loss(adapter(x), torch.randn(16, 12)).backward()
    assert all((parameter.grad != 0).all() for parameter in adapter.parameters())
    first, second = adapter.Q.grad.chunk(2, 1)
    torch.testing.assert_close(first, -second)


@few
@given(case=shapes)
def test_singular_start_takes_its_share_out_of_the_weight(singular_start, started, case):
    (kind, options), ((i, o), rank) = singular_start, case
    adapter = started(kind, i, o, rank=rank, **options)
    c, d = adapter.correction()
    assert adapter.carries_base
    assert adapter.delta().norm() > 0
    torch.testing.assert_close(c.double() @ d.double(), -adapter.delta(), rtol=0, atol=1e-6)


def test_every_trained_number_gets_a_gradient(variant, started):
    kind, options = variant
    adapter = started(kind, 12, 10, rank=3, **options)
    optimizer = torch.optim.SGD(adapter.parameters(), lr=0.1)
    x, target = torch.randn(16, 12), torch.randn(16, 10)
    for _ in range(2):  # at zero, one factor of the product gets its gradient after the first step
        optimizer.zero_grad()
        F.mse_loss(adapter(x), target).backward()
        optimizer.step()
    for name, parameter in adapter.named_parameters():
        rows = parameter.grad[:10] if name == "Q" else parameter.grad
        assert (rows != 0).all(), name


def test_what_does_not_train_is_no_parameter(variant, started):
    kind, options = variant
    assert all(p.requires_grad for p in started(kind, 6, 6, rank=2, **options).parameters())


@pytest.mark.parametrize(("scaling", "factor"), [("lora", 6.0 / 4), ("rslora", 6.0 / 2)])
def test_scaling(variant, scaling, factor):
    kind, options = variant
    adapter = get(kind)(8, 8, rank=4, alpha=6.0, scaling=scaling, **options)
    assert adapter.scaling == factor


def test_alpha_is_the_rank_unless_said(variant):
    kind, options = variant
    assert get(kind)(8, 8, rank=4, **options).scaling == 1.0


@pytest.mark.parametrize("rank", [0, -1, 7])
def test_rank_must_fit(variant, rank):
    kind, options = variant
    with pytest.raises(PlanError, match=r"rank -?\d does not fit"):
        get(kind)(6, 9, rank=rank, **options)


def test_unknown_scaling_and_dropout_are_refused(variant):
    kind, options = variant
    with pytest.raises(PlanError, match="unknown scaling 'half'"):
        get(kind)(6, 6, rank=2, scaling="half", **options)
    with pytest.raises(PlanError, match="dropout"):
        LoRA(6, 6, rank=2, dropout=1.0)


def test_dropout_acts_in_training_only(zero_start, trained):
    kind, options = zero_start
    adapter = trained(kind, 64, 64, rank=4, dropout=0.5, **options)
    x = torch.randn(8, 64)
    assert not torch.equal(adapter(x), adapter(x))
    adapter.eval()
    torch.testing.assert_close(
        adapter(x).double(), x.double() @ adapter.delta().T, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_mixed_precision_keeps_the_dtype_of_the_input(variant, trained, dtype, autocast):
    kind, options = variant
    adapter = trained(kind, 24, 16, rank=3, **options)
    x = torch.randn(5, 24).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = adapter(x)
    y.float().sum().backward()
    want = x.double() @ adapter.delta().T
    assert y.dtype == dtype
    assert all(p.grad.dtype == torch.float32 for p in adapter.parameters())
    assert (y.double() - want).norm() < 0.03 * want.norm()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))])
def test_copies_are_the_same_and_independent(variant, trained, duplicate):
    kind, options = variant
    adapter = trained(kind, 10, 12, rank=2, **options)
    twin = duplicate(adapter)
    before = adapter.delta()
    assert torch.equal(twin.delta(), before)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1.0)
    assert torch.equal(adapter.delta(), before)


def test_state_dict_and_base_give_the_adapter_back(variant, trained, weight_of):
    kind, options = variant
    adapter = trained(kind, 10, 12, rank=2, **options)
    twin = get(kind)(10, 12, rank=2, **options)
    twin.read_base(weight_of(10, 12))
    twin.load_state_dict(adapter.state_dict())
    assert torch.equal(twin.delta(), adapter.delta())
    for ours, theirs in zip(twin.correction() or (), adapter.correction() or (), strict=True):
        assert torch.equal(ours, theirs)


def test_compiles_as_one_graph(variant, trained):
    kind, options = variant
    adapter = trained(kind, 10, 12, rank=2, **options)
    x = torch.randn(3, 10)
    compiled = torch.compile(adapter, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), adapter(x))


def test_everything_lies_on_the_device_asked_for(variant):
    kind, options = variant
    adapter = get(kind)(12, 12, rank=3, device="meta", **options)
    tensors = {**dict(adapter.named_parameters()), **dict(adapter.named_buffers())}
    assert {name for name, tensor in tensors.items() if not tensor.is_meta} == set()


def test_factors_have_the_type_asked_for_and_counters_are_whole_numbers(variant):
    kind, options = variant
    adapter = get(kind)(12, 12, rank=3, dtype=torch.float64, **options)
    assert {p.dtype for p in adapter.parameters()} == {torch.float64}
    counters = [b for name, b in adapter.named_buffers() if name.endswith(("cursor", "count"))]
    assert all(counter.dtype is torch.long for counter in counters)
