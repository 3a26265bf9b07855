"""Apply does exactly the plan or nothing; undo gives every bit back."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from surgery import adapters
from surgery.adapters import LoRA
from surgery.anatomy.types import Anatomy
from surgery.checkpoint import load, save
from surgery.errors import PlanError, PolicyError, StateError
from surgery.operations import apply as apply_module
from surgery.operations.adapted import Adapted, adapters_of
from surgery.operations.apply import apply
from surgery.operations.fold import fold
from surgery.operations.planner import plan
from surgery.operations.state import find_record
from surgery.operations.undo import undo

Adapt = Callable[..., nn.Module]
Photograph = Callable[[nn.Module], dict[str, object]]
Train = Callable[[nn.Module, Tensor], None]
KINDS = adapters.names()
ALL = {"select": [{"roles": [f"attention.{r}" for r in ("query", "key", "value", "output")]}]}


def test_only_adapters_and_the_policy_s_extras_train(
    net: nn.Module, adapt: Adapt, x: Tensor
) -> None:
    adapt(net, rank=2, train=["head"], adapter="srlora", seed=0)
    net(x).square().sum().backward()
    for name, parameter in net.named_parameters():
        trains = ".adapters." in name or name.startswith("head.")
        assert parameter.requires_grad is trains
        assert (parameter.grad is not None) is trains
    assert all(float(p.grad.abs().sum()) > 0 for _, a in adapters_of(net) for p in a.parameters())


@pytest.mark.parametrize(
    ("dtype", "train", "said"),
    [
        (torch.float16, ["head"], ["head.weight and 1 others would train in float16"]),
        (torch.float16, [], []),
        (torch.bfloat16, ["head"], []),
    ],
)
def test_what_would_train_in_half_precision_is_said(
    net: nn.Module, adapt: Adapt, dtype: torch.dtype, train: list[str], said: list[str]
) -> None:
    """One step of Adam would make NaN of it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adapt(net.to(dtype), rank=2, train=train, adapter="lora")
    found = [str(one.message) for one in caught if "float16" in str(one.message)]
    assert len(found) == len(said) and all(map(str.startswith, found, said))


@pytest.mark.parametrize("kind", KINDS)
def test_undo_restores_every_bit_flag_class_and_attribute(
    net: nn.Module, adapt: Adapt, photograph: Photograph, train: Train, x: Tensor, kind: str
) -> None:
    before = photograph(net)
    assert adapt(net, ALL, adapter=kind, rank=2, train=["head", "norms"]) is net
    train(net, x)
    after = photograph(net)
    assert after["bits"] != before["bits"]
    assert undo(net) is net
    assert photograph(net) == before


def test_undo_restores_running_statistics(net: nn.Module, adapt: Adapt, x: Tensor) -> None:
    mean = net.norm.running_mean.clone()
    adapt(net, rank=2)
    net.train()(x)
    assert not torch.equal(net.norm.running_mean, mean)
    undo(net)
    assert torch.equal(net.norm.running_mean, mean)


def test_undo_drops_the_gradients_of_what_trained(
    net: nn.Module, adapt: Adapt, train: Train, x: Tensor
) -> None:
    adapt(net, rank=2, train=["head"])
    train(net, x)
    assert net.head.weight.grad is not None
    undo(net)
    assert net.head.weight.grad is None


def test_undo_without_apply(net: nn.Module) -> None:
    with pytest.raises(StateError, match="nothing to undo"):
        undo(net)


def test_applying_twice_is_refused_and_changes_nothing(
    net: nn.Module, adapt: Adapt, photograph: Photograph
) -> None:
    adapt(net, rank=2)
    once = photograph(net)
    with pytest.raises(StateError, match=r"(?s)adapted already.*surgery\.fold"):
        adapt(net, rank=2)
    with pytest.raises(StateError, match="adapted already"):
        plan(nn.Sequential(net), "vit-attn-qv")
    assert photograph(net) == once


def test_a_part_that_is_adapted_is_named(net: nn.Module, adapt: Adapt) -> None:
    whole = nn.Sequential(adapt(net, rank=2))
    with pytest.raises(StateError, match=r"(?s)where: 0.*surgery\.undo\(model\.0\)"):
        undo(whole)


def test_it_does_exactly_the_plan(net: nn.Module, anatomies: dict[bool, Anatomy]) -> None:
    made = plan(net, ALL, anatomy=anatomies[net.by_weight], adapter="lora", rank=3, train=["head"])
    apply(net, plan=made)
    assert sorted(path for path, _ in adapters_of(net)) == sorted(o.path for o in made.operations)
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == made.trainable
    assert (
        sum(p.numel() for p in net.parameters()) == made.base_parameters + made.adapter_parameters
    )
    assert find_record(net).plan == made


def test_a_plan_and_a_policy_exclude_each_other(
    net: nn.Module, anatomies: dict[bool, Anatomy]
) -> None:
    made = plan(net, ALL, anatomy=anatomies[net.by_weight], rank=2)
    with pytest.raises(PlanError, match="a plan and a policy"):
        apply(net, "vit-attn-qv", plan=made)
    with pytest.raises(PlanError, match="a plan and a policy"):
        apply(net, plan=made, rank=4)
    with pytest.raises(PlanError, match="needs a policy or a plan"):
        apply(net)


def test_a_plan_for_another_model_is_refused(
    make_net: Callable[..., nn.Module], anatomies: dict[bool, Anatomy], photograph: Photograph
) -> None:
    made = plan(make_net(), ALL, anatomy=anatomies[False], rank=2, train=["head"])
    other = make_net()
    other.blocks[1].attn.proj = nn.Linear(16, 17)
    before = photograph(other)
    with pytest.raises(PlanError, match=r"blocks\.1\.attn\.proj\.weight"):
        apply(other, plan=made)
    headless = make_net()
    headless.head = nn.Identity()
    with pytest.raises(PlanError, match=r"no parameter head\.weight"):
        apply(headless, plan=made)
    assert photograph(other) == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_makes_it_reproducible_and_leaves_the_global_state(
    make_net: Callable[..., nn.Module], adapt: Adapt, kind: str
) -> None:
    state = torch.get_rng_state()
    one, other = (adapt(make_net(), adapter=kind, rank=2, seed=7) for _ in range(2))
    torch.manual_seed(0)
    make_net()
    assert torch.equal(torch.get_rng_state(), _after_making(make_net))
    for (_, a), (_, b) in zip(adapters_of(one), adapters_of(other), strict=True):
        assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    different = adapt(make_net(), adapter="lora", rank=2, seed=8)
    same = adapt(make_net(), adapter="lora", rank=2, seed=7)
    pairs = zip(adapters_of(different), adapters_of(same), strict=True)
    assert not any(torch.equal(a.A, b.A) for (_, a), (_, b) in pairs)
    torch.set_rng_state(state)


def _after_making(make_net: Callable[..., nn.Module]) -> Tensor:
    make_net()
    return torch.get_rng_state()


def test_the_meta_device_has_nothing_to_adapt(
    make_net: Callable[..., nn.Module], adapt: Adapt
) -> None:
    with torch.device("meta"):
        model = make_net()
    with pytest.raises(StateError, match="meta device"):
        adapt(model, rank=2)


def test_a_distributed_wrapper_trains_and_is_not_operated_on(
    net: nn.Module, adapt: Adapt, x: Tensor, photograph: Photograph
) -> None:
    before = photograph(net)
    adapt(net, adapter="srlora", rank=2)
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(net)
        wrapped(x).square().sum().backward()
        assert all(p.grad is not None for _, a in adapters_of(net) for p in a.parameters())
        with pytest.raises(StateError, match=r"(?s)Distributed.*surgery\.undo\(model\.module\)"):
            undo(wrapped)
    finally:
        torch.distributed.destroy_process_group()
    undo(net)
    assert photograph(net) == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu(net: nn.Module, adapt: Adapt, x: Tensor, tmp_path: Path, kind: str) -> None:
    net.cuda()
    before = {name: p.clone() for name, p in net.named_parameters()}
    adapt(net, adapter=kind, rank=2, seed=0)
    net(x.cuda()).square().sum().backward()
    for _, adapter in adapters_of(net):
        assert all(p.is_cuda and p.grad is not None for p in adapter.parameters())
    y, other = net(x.cuda()), copy.deepcopy(net)
    path = save(net, tmp_path / "a.safetensors")
    undo(net)
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())
    torch.testing.assert_close(load(net, path)(x.cuda()), y)
    fold(other)
    torch.testing.assert_close(other(x.cuda()), y, rtol=1e-4, atol=1e-4)


def test_a_compiled_wrapper_is_looked_through(
    make_net: Callable[..., nn.Module], x: Tensor
) -> None:
    net = make_net()
    compiled = torch.compile(net, backend="eager")
    assert (
        apply(compiled, {"select": [{"roles": ["mlp.up"]}]}, example_inputs=x, adapter="lora")
        is compiled
    )
    assert find_record(net) is not None
    undo(compiled)
    assert find_record(net) is None


class Fault(Exception):
    pass


def _failing_start(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(100))
    start = LoRA.start

    def fail(self: LoRA, *args: object) -> None:
        if next(calls) == 2:
            raise Fault
        start(self, *args)

    monkeypatch.setattr(LoRA, "start", fail)


def _failing_dress(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(100))
    dress = apply_module.dress

    def fail(*args: object) -> Adapted:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return dress(*args)

    monkeypatch.setattr(apply_module, "dress", fail)


def _failing_refresh(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(100))
    refresh = Adapted.refresh_base

    def fail(self: Adapted) -> None:
        refresh(self)
        if next(calls) == 1:
            raise MemoryError

    monkeypatch.setattr(Adapted, "refresh_base", fail)


def _failing_remember(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise Fault

    monkeypatch.setattr(apply_module, "remember", fail)


@pytest.mark.parametrize(
    ("inject", "kind", "error"),
    [
        (_failing_start, "lora", Fault),
        (_failing_dress, "lora", KeyboardInterrupt),
        (_failing_dress, "srlora", KeyboardInterrupt),
        (_failing_refresh, "srlora", MemoryError),
        (_failing_remember, "srlora", Fault),
    ],
)
def test_a_failure_anywhere_leaves_the_model_as_it_was(
    net: nn.Module,
    adapt: Adapt,
    photograph: Photograph,
    x: Tensor,
    monkeypatch: pytest.MonkeyPatch,
    inject: Callable[[pytest.MonkeyPatch], None],
    kind: str,
    error: type[BaseException],
) -> None:
    net(x).sum().backward()
    gradients = {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
    before, y = photograph(net), net(x)
    inject(monkeypatch)
    with pytest.raises(error):
        adapt(net, ALL, adapter=kind, rank=2, train=["head"])
    assert photograph(net) == before
    assert torch.equal(net(x), y)
    assert all(torch.equal(dict(net.named_parameters())[n].grad, g) for n, g in gradients.items())


def test_a_new_head_put_in_since_is_the_user_s(net: nn.Module, adapt: Adapt) -> None:
    adapt(net, rank=2, train=["head"])
    net.head = nn.Linear(16, 9)
    weight = net.head.weight.detach().clone()
    undo(net)
    assert torch.equal(net.head.weight, weight)
    assert not any(isinstance(m, Adapted) for m in net.modules())


def test_a_head_that_is_gone_is_said_and_not_saved(
    net: nn.Module, adapt: Adapt, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapt(net, rank=2, train=["head"])
    net.head = nn.Sequential(nn.Dropout(), net.head)
    with pytest.raises(StateError, match=r"head\.weight trains"):
        save(net, tmp_path / "adapter.safetensors")
    undo(net)
    assert "head.weight is no longer in the model" in caplog.text


@pytest.mark.parametrize("end", [undo, fold])
def test_parts_compiled_or_checkpointed_since_keep_their_names(
    net: nn.Module, adapt: Adapt, photograph: Photograph, x: Tensor, tmp_path: Path, end: object
) -> None:
    plain, before = copy.deepcopy(net), photograph(net)
    adapt(net, rank=2, train=["head", "norms"])
    inner = list(net.blocks)
    net.blocks[0] = torch.compile(net.blocks[0], backend="eager")
    net.blocks[1] = checkpoint_wrapper(net.blocks[1])
    net.head = torch.compile(net.head, backend="eager")
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    file, y = save(net, tmp_path / "adapter.safetensors"), net(x)
    torch.testing.assert_close(load(plain, file)(x), y)
    end(net)
    net.blocks, net.head = nn.ModuleList(inner), net.head._orig_mod
    flags = {name: p.requires_grad for name, p in net.named_parameters()}
    assert flags.pop("norm.bias") is False
    assert all(flags.values())
    after = photograph(net)
    seen = ("keys", "identity", "flags", "classes") + (("bits",) if end is undo else ())
    assert {part: after[part] for part in seen} == {part: before[part] for part in seen}


def test_a_plan_can_be_given_as_the_policy(
    net: nn.Module, anatomies: dict[bool, Anatomy], make_net: Callable[..., nn.Module]
) -> None:
    wanted = plan(net, ALL, anatomy=anatomies[net.by_weight], adapter="lora", rank=2)
    apply(net, wanted)
    assert find_record(net).plan == wanted
    with pytest.raises(PlanError, match="override when planning"):
        apply(make_net(net.by_weight), wanted, rank=4)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda net: apply("vit-attn-qv", net), StateError, "a str is no model"),
        (lambda net: undo(None), StateError, "a NoneType is no model"),
        (lambda net: apply(net, plan="vit-attn-qv"), PlanError, "a str is no plan"),
        (lambda net: apply(net, 5), PolicyError, "a int is no policy"),
    ],
)
def test_what_is_no_model_plan_or_policy_is_called_so(
    net: nn.Module, call: Callable[[nn.Module], object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        call(net)


def test_undo_of_a_copy_leaves_the_other_alone(net: nn.Module, adapt: Adapt, x: Tensor) -> None:
    adapt(net, adapter="srlora", rank=2)
    y, other = net(x), copy.deepcopy(net)
    undo(other)
    assert torch.equal(net(x), y)
    assert len(list(adapters_of(net))) == 4
