"""Folding: the plain model again, each weight one rounding away from the exact sum."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from surgery import adapters
from surgery.errors import StateError
from surgery.operations.adapted import Adapted, adapters_of
from surgery.operations.fold import FoldReport, fold
from surgery.operations.state import find_record
from tests.trust.promises import wrongly_rounded

Adapt = Callable[..., nn.Module]
Photograph = Callable[[nn.Module], dict[str, object]]
Train = Callable[[nn.Module, Tensor], None]
KINDS = adapters.names()


def exact_sums(model: nn.Module, originals: dict[str, Tensor]) -> dict[str, Tensor]:
    """original + correction + delta in float64, scattered by plain indexing."""
    sums = {name: weight.double().clone() for name, weight in originals.items()}
    for operation in find_record(model).plan.operations:
        adapter = model.get_submodule(operation.path)
        change = adapter.delta()
        if (correction := adapter.correction()) is not None:
            change = change + correction[0].double() @ correction[1].double()
        rows = [c for run in operation.projection.rows for c in range(*run)]
        sums[operation.projection.weight_name][rows] += change
    return sums


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_each_weight_is_the_exact_sum_rounded_once(
    net: nn.Module, adapt: Adapt, train: Train, x: Tensor, kind: str, dtype: torch.dtype
) -> None:
    net.to(dtype)
    originals = {k: v.clone() for k, v in net.state_dict().items() if k.endswith("weight")}
    adapt(net, adapter=kind, rank=2, seed=0)
    train(net, x.to(dtype))
    sums = exact_sums(net, originals)
    adapted = {o.projection.weight_name for o in find_record(net).plan.operations}
    report = fold(net)
    for name, expected in sums.items():
        # Not expected.to(dtype): on the way to 16 bits torch rounds twice.
        assert wrongly_rounded(net.state_dict()[name], expected.numpy()) == 0
        assert torch.equal(net.state_dict()[name], originals[name]) is (name not in adapted)
    assert 0 < report.drift < torch.finfo(dtype).eps


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_in_double_precision(
    net: nn.Module, adapt: Adapt, train: Train, x: Tensor, kind: str
) -> None:
    adapt(net.double(), adapter=kind, rank=2, seed=0)
    train(net, x.double())
    y = net(x.double())
    assert fold(net).drift < 1e-15
    torch.testing.assert_close(net(x.double()), y, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_around_it_changes_no_bit(
    net: nn.Module, adapt: Adapt, train: Train, x: Tensor, kind: str
) -> None:
    adapt(net, adapter=kind, rank=2, seed=0)
    train(net, x)
    other = copy.deepcopy(net)
    fold(net)
    with torch.autocast("cpu", torch.bfloat16):
        fold(other)
    assert all(map(torch.equal, net.state_dict().values(), other.state_dict().values()))


def test_who_wrapped_a_forward_meanwhile_still_gets_the_plain_one(
    net: nn.Module, adapt: Adapt, train: Train, x: Tensor
) -> None:
    """accelerate's hooks keep the bound forward that they found."""
    adapt(net, rank=2)
    train(net, x)
    for module in net.modules():
        if isinstance(module, Adapted):
            module.forward = module.forward
    y = net(x)
    fold(net)
    torch.testing.assert_close(net(x), y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_it_computes_what_the_adapted_model_computed(
    net: nn.Module, adapt: Adapt, train: Train, photograph: Photograph, x: Tensor, kind: str
) -> None:
    before = photograph(net)
    adapt(net, adapter=kind, rank=2, train=["head"])
    train(net, x)
    y = net(x)
    report = fold(net, check_inputs=x)
    torch.testing.assert_close(net(x), y, rtol=1e-5, atol=1e-5)
    assert 0 <= report.function_drift < 1e-5
    after = photograph(net)
    for same in (
        "keys",
        "identity",
        "flags",
        "classes",
        "attributes",
        "hooks",
        "children",
        "modes",
    ):
        assert after[same] == before[same]
    assert after["bits"]["head.weight"] != before["bits"]["head.weight"]


def test_untrained_adapters_fold_to_the_original_bits(net: nn.Module, adapt: Adapt) -> None:
    """The singular start subtracts and adds the same numbers: in float64 they cancel."""
    original = net.blocks[0].attn.qkv.weight.detach().clone()
    adapt(net, adapter="srlora", rank=4)
    assert not torch.equal(net.blocks[0].attn.qkv.base("weight"), original)
    report = fold(net)
    assert torch.equal(net.blocks[0].attn.qkv.weight, original)
    assert all(p.update_error >= 0 for p in report.projections)


def test_rows_without_an_adapter_keep_their_bits(net: nn.Module, adapt: Adapt) -> None:
    """Correcting the weight of a singular start turns -0.0 into 0.0 in its other rows."""
    weight = net.blocks[0].attn.qkv.weight
    with torch.no_grad():
        weight[16:32] = -0.0
    adapt(net, adapter="srlora", rank=4)
    fold(net)
    assert weight[16:32].signbit().all()


def test_nothing_applied_and_folding_twice(net: nn.Module, adapt: Adapt) -> None:
    with pytest.raises(StateError, match="nothing to fold"):
        fold(net)
    fold(adapt(net, rank=2))
    with pytest.raises(StateError, match="nothing to fold"):
        fold(net)


@pytest.mark.parametrize(
    ("value", "dtype", "why"),
    [
        (float("nan"), torch.float32, "diverged"),
        (3e3, torch.float16, "beyond the range of torch.float16"),
    ],
)
def test_a_sum_that_is_not_finite_is_refused_and_nothing_written(
    net: nn.Module, adapt: Adapt, photograph: Photograph, value: float, dtype: torch.dtype, why: str
) -> None:
    net.to(dtype)
    adapt(net, adapter="lora", rank=2)
    last = list(adapters_of(net))[-1][1]
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.fill_(value)
    before = photograph(net)
    with pytest.raises(StateError, match=why) as error:
        fold(net)
    assert error.value.where == "blocks.1.attn.qkv.weight"
    assert photograph(net) == before


def test_the_report_names_each_projection_and_measures_it(
    net: nn.Module, adapt: Adapt, train: Train, x: Tensor
) -> None:
    original = net.blocks[0].attn.qkv.weight.detach().clone()
    adapt(net, rank=2)
    train(net, x)
    sums = exact_sums(
        net, {"blocks.0.attn.qkv.weight": original, "blocks.1.attn.qkv.weight": original}
    )
    report = fold(net)
    assert [p.name for p in report.projections][:2] == [
        f"blocks.0.attn.qkv.weight:{slot}" for slot in ("query", "value")
    ]
    exact, folded = (
        sums["blocks.0.attn.qkv.weight"][:16],
        net.blocks[0].attn.qkv.weight[:16].detach().double(),
    )
    rounding = float((folded - exact).norm())
    assert report.projections[0].drift == pytest.approx(rounding / float(exact.norm()))
    update = float((exact - original[:16].double()).norm())
    assert report.projections[0].update_error == pytest.approx(rounding / update)
    plain = report.to_dict()
    assert plain["drift"] == max(p["drift"] for p in plain["projections"])
    assert plain["function_drift"] is None
    assert "attention.query" in str(report)


def test_an_update_that_rounding_swallows_is_said_aloud(
    make_net: Callable[..., nn.Module], adapt: Adapt
) -> None:
    net = make_net().bfloat16()
    adapt(net, adapter="lora", rank=2)
    with torch.no_grad():
        for _, adapter in adapters_of(net):
            adapter.B.fill_(1e-4)
    report = fold(net)
    assert any("fold in float32" in note for note in report.notes)


def test_the_check_leaves_mode_and_random_state(net: nn.Module, adapt: Adapt, x: Tensor) -> None:
    adapt(net, rank=2).train()
    state, mean = torch.get_rng_state(), net.norm.running_mean.clone()
    assert isinstance(fold(net, check_inputs=(x,)), FoldReport)
    assert net.training
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(net.norm.running_mean, mean)


def test_a_copy_folds_alone(net: nn.Module, adapt: Adapt, x: Tensor) -> None:
    adapt(net, adapter="srlora", rank=2)
    y, other = net(x), copy.deepcopy(net)
    fold(other)
    assert torch.equal(net(x), y)
    assert sum(isinstance(m, Adapted) for m in net.modules()) == 2
