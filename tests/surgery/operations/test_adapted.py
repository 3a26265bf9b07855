"""The class swap: what an adapted module keeps, and that it computes base + delta everywhere."""

from __future__ import annotations

import copy
import importlib
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

import surgery
from policies.roles import Role
from surgery import adapters
from surgery.adapters import LoRA, PiSSA, SRLoRA
from surgery.adapters.base import Adapter
from surgery.anatomy.capture import without_fast_path
from surgery.anatomy.types import Access, Layout, Rows
from surgery.errors import StateError
from surgery.operations.adapted import Adapted, adapters_of, dress, strip
from surgery.operations.apply import apply
from surgery.operations.fold import fold
from surgery.operations.graft import Graft

Adapt = Callable[..., nn.Module]
KINDS = adapters.names()


def shake(model: nn.Module, size: float = 0.1) -> nn.Module:
    """Move every adapter away from its start."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, adapter in adapters_of(model):
            for parameter in adapter.parameters():
                parameter += size * torch.randn(parameter.shape, generator=generator)
    return model


def on(
    module: nn.Module, rows: Rows, layout: Layout, access: Access, cls: type[Adapter]
) -> Adapter:
    """Put one adapter on rows of ``module.weight``."""
    weight = module.weight.detach()
    matrix = weight.t() if layout is Layout.IN_OUT else weight.flatten(1)
    chosen = matrix[[c for run in rows for c in range(*run)]]
    adapter = cls(matrix.shape[1], len(chosen), rank=2)
    adapter.start(chosen, torch.Generator().manual_seed(0))
    graft = Graft(layout, access, len(matrix))
    graft.place("query", adapter, rows)
    if adapter.correction() is not None:
        graft.original = weight.clone()
    dress(module, {"weight": graft}).refresh_base()
    return adapter


def exact(
    module: nn.Module, original: Tensor, adapter: Adapter, rows: Rows, layout: Layout
) -> Tensor:
    """original + correction + delta by plain indexing, in float64, as (out, in)."""
    matrix = (original.t() if layout is Layout.IN_OUT else original.flatten(1)).double().clone()
    change = adapter.delta()
    if (correction := adapter.correction()) is not None:
        change = change + correction[0].double() @ correction[1].double()
    matrix[[c for run in rows for c in range(*run)]] += change
    return matrix


MODULES: dict[str, tuple[Callable[[], nn.Module], Layout, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 12), Layout.OUT_IN, (2, 3, 6)),
    "linear without bias": (lambda: nn.Linear(6, 12, bias=False), Layout.OUT_IN, (5, 6)),
    "Conv1D": (lambda: Conv1D(12, 6), Layout.IN_OUT, (2, 3, 6)),
    "conv1d": (lambda: nn.Conv1d(6, 12, 1), Layout.CONV, (2, 6, 4)),
    "conv2d": (lambda: nn.Conv2d(6, 12, 1), Layout.CONV, (2, 6, 4, 5)),
    "conv2d with stride": (lambda: nn.Conv2d(6, 12, 1, stride=(2, 3)), Layout.CONV, (2, 6, 5, 7)),
    "conv2d without batch": (lambda: nn.Conv2d(6, 12, 1, stride=2), Layout.CONV, (6, 5, 7)),
}
ROWS: dict[str, Rows] = {
    "all": ((0, 12, 1),),
    "block": ((4, 8, 1),),
    "interleaved": ((0, 2, 1), (6, 8, 1)),
    "step": ((1, 12, 3),),
    "irregular": ((9, 11, 1), (0, 3, 1)),
}


@pytest.mark.parametrize("cls", [LoRA, SRLoRA])
@pytest.mark.parametrize("access", list(Access))
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize(("make", "layout", "shape"), MODULES.values(), ids=MODULES)
def test_output_and_gradients_are_those_of_the_summed_weight(
    make: Callable[[], nn.Module],
    layout: Layout,
    shape: tuple[int, ...],
    rows: Rows,
    access: Access,
    cls: type[Adapter],
) -> None:
    torch.manual_seed(0)
    module = make()
    original = module.weight.detach().clone()
    adapter = on(module, rows, layout, access, cls)
    shake(module)
    x = torch.randn(shape, requires_grad=True)
    y = module(x)
    y.square().sum().backward()

    summed = exact(module, original, adapter, rows, layout)
    reference = copy.deepcopy(module)
    strip(reference)
    weight = summed.t() if layout is Layout.IN_OUT else summed.reshape(original.shape)
    reference = reference.double()
    reference.weight = nn.Parameter(weight)
    z = x.detach().double().requires_grad_()
    expected = reference(z)
    expected.square().sum().backward()
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x.grad.double(), z.grad, rtol=1e-4, atol=1e-4)

    grad = reference.weight.grad
    grad = (grad.t() if layout is Layout.IN_OUT else grad.flatten(1))[
        [c for run in rows for c in range(*run)]
    ]
    b, a = adapter.factors()
    torch.testing.assert_close(adapter.B.grad.double(), grad @ a.double().t(), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(adapter.A.grad.double(), b.double().t() @ grad, rtol=1e-4, atol=1e-3)


def test_it_is_still_what_it_was(net: nn.Module, adapt: Adapt) -> None:
    keys = list(net.state_dict())
    adapt(net, rank=2, adapter="srlora")
    qkv = net.blocks[0].attn.qkv
    assert isinstance(qkv, Adapted)
    assert isinstance(qkv, nn.Linear)
    assert type(qkv).__name__ == "AdaptedLinear"
    assert qkv._parameters["weight"].shape == (48, 16)
    assert net.state_dict(keep_vars=True)["blocks.0.attn.qkv.weight"] is qkv.base("weight")
    added = [k for k in net.state_dict() if k not in keys]
    assert [k for k in net.state_dict() if k in keys] == keys
    assert "blocks.0.attn.qkv.adapters.weight.query.A" in added
    assert all(".adapters.weight." in k for k in added)


@pytest.mark.parametrize("kind", KINDS)
def test_zero_starts_are_bit_identical_and_singular_starts_within_rounding(
    net: nn.Module, adapt: Adapt, x: Tensor, kind: str
) -> None:
    before = net(x)
    adapt(net, adapter=kind, rank=4, seed=0)
    qkv = net.blocks[0].attn.qkv
    original = net.state_dict()["blocks.0.attn.qkv.weight"]
    if any(adapter.correction() is not None for _, adapter in adapters_of(net)):
        assert not torch.equal(qkv.base("weight"), original)
        torch.testing.assert_close(net(x), before, rtol=1e-5, atol=1e-6)
    else:
        assert torch.equal(qkv.base("weight"), original)
        assert torch.equal(net(x), before)


@pytest.mark.parametrize("kind", ["symlora", "srlora"])
@pytest.mark.parametrize("copier", ["deepcopy", "pickle", "torch.save"])
def test_copies_compute_the_same_and_can_be_folded(
    net: nn.Module, adapt: Adapt, x: Tensor, kind: str, copier: str
) -> None:
    shake(adapt(net, adapter=kind, rank=2))
    if copier == "deepcopy":
        other = copy.deepcopy(net)
    elif copier == "pickle":
        other = pickle.loads(pickle.dumps(net))
    else:
        buffer = io.BytesIO()
        torch.save(net, buffer)
        buffer.seek(0)
        other = torch.load(buffer, weights_only=False)
    y = net(x)
    assert torch.equal(other(x), y)
    assert not {id(p) for p in net.parameters()} & {id(p) for p in other.parameters()}
    fold(other)
    assert not any(isinstance(m, Adapted) for m in other.modules())
    assert torch.equal(net(x), y)


@pytest.mark.parametrize("kind", ["symlora", "srlora"])
def test_the_original_checkpoint_loads_and_an_adapted_one_round_trips(
    net: nn.Module, adapt: Adapt, x: Tensor, kind: str
) -> None:
    original = {k: v.clone() for k, v in net.state_dict().items()}
    fresh = copy.deepcopy(net)
    shake(adapt(net, adapter=kind, rank=2))
    state = {k: v.clone() for k, v in net.state_dict().items()}
    assert all(torch.equal(state[k], v) for k, v in original.items())

    adapt(fresh, adapter=kind, rank=2)
    other = {
        k: v + 0.5 * torch.rand_like(v) if v.is_floating_point() else v for k, v in original.items()
    }
    fresh.load_state_dict(other, strict=False)
    assert all(torch.equal(fresh.state_dict()[k], v) for k, v in other.items())
    fresh.load_state_dict(state)
    assert torch.equal(fresh(x), net(x))


def test_loading_a_weight_of_another_shape_fails_and_keeps_the_original(
    make_net: Callable[..., nn.Module], adapt: Adapt
) -> None:
    net = adapt(make_net(), adapter="srlora", rank=2)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(RuntimeError, match="size mismatch"):
        net.load_state_dict({"blocks.0.attn.qkv.weight": torch.zeros(3, 3)}, strict=False)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize("kind", ["symlora", "srlora"])
def test_compiles_without_a_graph_break_and_exports_what_it_computes(
    net: nn.Module, adapt: Adapt, x: Tensor, kind: str
) -> None:
    shake(adapt(net, adapter=kind, rank=2))
    y = net(x)
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), y)
    compiled(x).sum().backward()
    assert all(p.grad is not None for _, a in adapters_of(net) for p in a.parameters())
    program = torch.export.export(net, (x,), strict=False)
    torch.testing.assert_close(program.module()(x), y)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(
    net: nn.Module, adapt: Adapt, x: Tensor, reentrant: bool
) -> None:
    shake(adapt(net, rank=2))
    gradients = []
    for run in (
        lambda block, h: block(h),
        lambda block, h: checkpoint(block, h, use_reentrant=reentrant),
    ):
        net.zero_grad()
        h = x.clone().requires_grad_()
        for block in net.blocks:
            h = run(block, h)
        h.square().sum().backward()
        gradients.append([p.grad.clone() for _, a in adapters_of(net) for p in a.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_a_module_used_many_times_is_adapted_every_time() -> None:
    torch.manual_seed(0)
    shared = nn.Linear(6, 6)
    model = nn.Sequential(shared, nn.Tanh(), shared)
    adapter = on(shared, ((0, 6, 1),), Layout.OUT_IN, Access.MODULE, LoRA)
    shake(model)
    x = torch.randn(3, 6)
    weight = (shared.base("weight") + adapter.delta(torch.float32)).detach()
    once = torch.tanh(F.linear(x, weight, shared.bias))
    torch.testing.assert_close(model(x), F.linear(once, weight, shared.bias))


def test_dropout_follows_the_mode_the_model_was_in(
    make_net: Callable[..., nn.Module], adapt: Adapt, x: Tensor
) -> None:
    for training in (True, False):
        net = make_net()
        net.norm = nn.Identity()
        net.train(training)
        shake(adapt(net, adapter={"kind": "lora", "dropout": 0.5}, rank=2))
        assert torch.equal(net(x), net(x)) is not training


def test_hooks_of_the_module_still_run(net: nn.Module, adapt: Adapt, x: Tensor) -> None:
    seen: list[Tensor] = []
    net.blocks[0].attn.proj.register_forward_hook(lambda m, args, out: seen.append(out))
    shake(adapt(net, {"select": [{"roles": ["attention.output"]}]}, adapter="lora", rank=2))
    net(x)
    assert len(seen) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_half_precision(
    net: nn.Module, adapt: Adapt, x: Tensor, dtype: torch.dtype
) -> None:
    net.to(dtype)
    adapt(net, adapter="srlora", rank=2)
    assert all(p.dtype == torch.float32 for _, a in adapters_of(net) for p in a.parameters())
    seen: list[torch.dtype] = []
    net.blocks[0].attn.proj.register_forward_pre_hook(lambda m, args: seen.append(args[0].dtype))
    assert net(x.to(dtype)).dtype == dtype
    assert seen == [dtype]


@pytest.mark.parametrize("access", list(Access))
def test_autocast_gives_the_plain_module_s_dtype(access: Access) -> None:
    module = nn.Linear(8, 8)
    adapter = on(module, ((0, 8, 1),), Layout.OUT_IN, access, LoRA)
    shake(module)
    x = torch.randn(2, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = module(x)
        y.float().sum().backward()
    assert y.dtype is torch.bfloat16
    assert all(p.grad.dtype is torch.float32 for p in adapter.parameters())


def test_a_composed_weight_is_not_rounded_by_autocast() -> None:
    module = nn.Linear(8, 8)
    on(module, ((0, 8, 1),), Layout.OUT_IN, Access.PARAMETER, LoRA)
    shake(module)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = module.weight
    assert torch.equal(inside, module.weight)


def test_functional_call_replaces_the_base_under_its_own_name(
    net: nn.Module, adapt: Adapt, x: Tensor
) -> None:
    shake(adapt(net, rank=2))
    zero = {k: torch.zeros_like(p) for k, p in net.named_parameters() if "adapters" in k}
    plain = torch.func.functional_call(net, zero, (x,))
    assert not torch.allclose(plain, net(x), atol=1e-4)
    base = {"blocks.0.attn.qkv.weight": torch.zeros(48, 16), **zero}
    emptied = copy.deepcopy(net)
    with torch.no_grad():
        emptied.load_state_dict({**emptied.state_dict(), **base})
    torch.testing.assert_close(torch.func.functional_call(net, base, (x,)), emptied(x))


def test_a_broken_adapter_never_passes_for_the_bare_weight() -> None:
    module = nn.Linear(4, 4)
    adapter = on(module, ((0, 4, 1),), Layout.OUT_IN, Access.PARAMETER, LoRA)
    del adapter.A
    with pytest.raises(RuntimeError, match="adapters of weight"):
        _ = module.weight


@pytest.mark.parametrize("training", [True, False])
def test_multihead_attention_and_the_fused_encoder_layer(training: bool) -> None:
    """torch's encoder layer reads its children's weights in a fused kernel when it infers."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    every = ["attention.query", "attention.value", "attention.output", "mlp.up", "mlp.down"]
    x = torch.randn(2, 5, 16)
    shake(apply(model, {"select": [{"roles": every}]}, adapter="lora", rank=2, example_inputs=x))
    model.train(training)
    with torch.no_grad():
        y = model(x)
        with without_fast_path():
            expected = model(x)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    fold(model)
    with torch.no_grad():
        torch.testing.assert_close(model(x), y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("access", Access)
@pytest.mark.parametrize("kind", [LoRA, PiSSA])
def test_a_replica_of_data_parallel_computes_the_same(
    access: Access, kind: type[Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch copies modules for each device and gives them their tensors as attributes; here for one CPU."""
    tools = importlib.import_module("torch.nn.parallel.replicate")
    monkeypatch.setattr(tools, "_get_device_index", lambda *args: 0)

    def copies(
        tensors: list[Tensor], devices: list[int], detach: bool = False
    ) -> list[list[Tensor]]:
        return [[tensor.clone() for tensor in tensors] for _ in devices]

    monkeypatch.setattr(tools, "_broadcast_coalesced_reshape", copies)
    module = nn.Linear(8, 12)
    on(module, ((0, 8, 1),), Layout.OUT_IN, access, kind)
    shake(module)
    x = torch.randn(3, 8)
    replica = tools.replicate(module, [0, 0])[1]
    assert not dict(replica.named_parameters())
    torch.testing.assert_close(F.linear(x, replica.weight), F.linear(x, module.weight))
    torch.testing.assert_close(replica(x), module(x))


def test_a_weight_that_is_parametrised_afterwards_is_missed_by_name() -> None:
    module = nn.Linear(8, 12)
    on(module, ((0, 8, 1),), Layout.OUT_IN, Access.MODULE, LoRA)
    nn.utils.parametrizations.weight_norm(module)
    with pytest.raises(StateError, match="has lost its weight"):
        module(torch.randn(3, 8))


def test_a_state_dict_that_is_assigned_stays_the_caller_s() -> None:
    module = nn.Linear(8, 12)
    on(module, ((0, 8, 1),), Layout.OUT_IN, Access.MODULE, PiSSA)
    given = {name: value.clone() for name, value in module.state_dict().items()}
    before, live = given["weight"].clone(), module.base("weight").detach().clone()
    module.load_state_dict(given, assign=True)
    assert torch.equal(given["weight"], before)
    assert torch.equal(module.base("weight"), live)


def test_slots_are_named_by_role() -> None:
    assert Role.QUERY.short == "query"
    module = nn.Linear(4, 4)
    on(module, ((0, 4, 1),), Layout.OUT_IN, Access.MODULE, LoRA)
    assert [path for path, _ in adapters_of(nn.Sequential(module))] == ["0.adapters.weight.query"]


@pytest.mark.parametrize("mode", ["reflect", "circular", "replicate"])
def test_a_convolution_that_pads_by_itself_is_adapted_by_its_weight(mode: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 2), nn.Conv2d(8, 8, 1, padding=1, padding_mode=mode), nn.Conv2d(8, 4, 1)
    )
    x = torch.randn(2, 3, 6, 6)
    plain = model(x)
    surgery.apply(model, {"select": [{"modules": ["1"]}]}, adapter="lora", rank=2, example_inputs=x)
    torch.testing.assert_close(model(x), plain)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    adapted = model(x)
    assert not torch.allclose(adapted, plain)
    surgery.fold(model)
    torch.testing.assert_close(model(x), adapted, atol=1e-4, rtol=1e-4)


def test_a_state_on_the_meta_device_is_loaded_without_values() -> None:
    """As accelerate does with FSDP2 and ram-efficient loading."""
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 4))
    policy = {"select": [{"modules": ["0"]}], "adapter": {"kind": "lora", "rank": 2}}
    surgery.apply(model, policy, example_inputs=torch.randn(2, 6))
    state = model.state_dict()
    model.to("meta").load_state_dict(state)
    model.load_state_dict(state, assign=True)
    assert torch.equal(model[0].base("weight"), state["0.weight"])
