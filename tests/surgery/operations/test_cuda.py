"""Every kind of adapter on a GPU: in each type, under every way to train, folded, and undone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import surgery
from surgery import adapters
from surgery.anatomy.types import Access, Layout
from surgery.operations.adapted import adapters_of, dress
from surgery.operations.graft import Graft
from surgery.operations.product import set_contraction

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICE = "cuda"
KINDS = [kind for kind in adapters.names() if not kind.startswith("test-")]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIXTEEN = DTYPES[1:]
IN, OUT, TOKENS = 64, 96, 33
Run = Callable[[nn.Module, Tensor], Tensor]
Adapt = Callable[..., nn.Module]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def _clean() -> Any:
    torch.manual_seed(0)
    yield
    set_contraction("auto")


def layer(kind: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A linear layer with two adapters away from their start, on the CPU; weights fit in 16 bits."""
    torch.manual_seed(0)
    linear = nn.Linear(IN, OUT).bfloat16().half().to(dtype).requires_grad_(False)
    graft = Graft(Layout.OUT_IN, Access.MODULE, OUT)
    for slot, run in {"query": (0, 64, 1), "value": (64, OUT, 1)}.items():
        rows = linear.weight[slice(*run)].float()
        options = {"rectangular": "truncate"} if kind == "symlora" else {}
        adapter = adapters.get(kind)(IN, len(rows), rank=4, **options)
        adapter.start(rows, torch.Generator().manual_seed(1))
        for parameter in adapter.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape)
        graft.place(slot, adapter, (run,))
        if adapter.correction() is not None:
            graft.original = linear.weight.detach().clone()
    owner = dress(linear, {"weight": graft})
    owner.refresh_base()
    return owner


def on_device(module: nn.Module) -> nn.Module:
    module = module.to(DEVICE)
    owner: Any = module
    owner.refresh_base()
    return module


def passes(module: nn.Module, run: Run, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Output and gradients, in float32 on the CPU."""
    device = next(module.parameters()).device
    x = torch.randn(4, TOKENS, IN, generator=torch.Generator().manual_seed(2))
    x = x.to(device, dtype).requires_grad_()
    y = run(module, x)
    y.float().square().mean().mul(100).backward()
    found = {"y": y, "x": x.grad} | {
        name: p.grad for name, p in module.named_parameters() if p.requires_grad
    }
    assert all(t is not None and t.isfinite().all() for t in found.values())
    return {name: tensor.detach().float().cpu() for name, tensor in found.items()}


def close(found: dict[str, Tensor], expected: dict[str, Tensor], share: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert value.any(), name
        assert (found[name] - value).norm() <= share * value.norm(), name


def plain(module: nn.Module, x: Tensor) -> Tensor:
    return module(x)


def under(dtype: torch.dtype) -> Run:
    def run(module: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast(DEVICE, dtype):
            return module(x)

    return run


def checkpointed(module: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(module, x, use_reentrant=False)


WAYS: dict[str, Run] = {
    "plain": plain,
    "checkpointed": checkpointed,
    "autocast": under(torch.bfloat16),
}


def share_of(dtype: torch.dtype) -> float:
    return 1e-4 if dtype is torch.float32 else 0.03


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", WAYS)
def test_gradients_are_those_of_the_cpu_in_float32(kind: str, dtype: torch.dtype, way: str) -> None:
    module = on_device(layer(kind, dtype))
    share = 0.03 if way == "autocast" else share_of(dtype)
    close(passes(module, WAYS[way], dtype), passes(layer(kind), plain), share)
    assert all(p.grad.dtype is torch.float32 for p in module.parameters() if p.requires_grad)


@pytest.mark.parametrize("order", ["merged", "low-rank", "plain"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_order_gives_the_same(kind: str, dtype: torch.dtype, order: Any) -> None:
    expected = passes(layer(kind), plain)
    set_contraction(order)
    close(passes(on_device(layer(kind, dtype)), plain, dtype), expected, share_of(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiles_whole(kind: str, dtype: torch.dtype) -> None:
    """By inductor for the two kinds that differ most, up to its door for the others."""
    torch._dynamo.reset()
    backend = "inductor" if kind in ("lora", "sym-srlora") else "aot_eager"
    module = on_device(layer(kind, dtype))
    compiled: Any = torch.compile(module, backend=backend, fullgraph=True)
    found = passes(module, lambda _, x: compiled(x), dtype)
    close(found, passes(layer(kind), plain), share_of(dtype))


@pytest.mark.parametrize("fused", [False, True])
def test_a_scaled_step_in_float16_is_that_of_float32(kind: str, fused: bool) -> None:
    """Signs are all that a first Adam step keeps of gradients, so it is SGD that is compared."""
    module, twin = on_device(layer(kind)), layer(kind)
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.01, fused=fused)
    scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**8)
    x = torch.randn(4, TOKENS, IN, generator=torch.Generator().manual_seed(2))
    loss = under(torch.float16)(module, x.to(DEVICE)).float().square().mean()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    before = [p.detach().clone() for p in twin.parameters() if p.requires_grad]
    twin(x).square().mean().backward()
    torch.optim.SGD([p for p in twin.parameters() if p.requires_grad], lr=0.01).step()
    after = [p.detach() for p in twin.parameters() if p.requires_grad]
    for old, new, found in zip(before, after, trained, strict=True):
        assert (new - old).any()
        assert (found.detach().cpu() - new).norm() <= 0.03 * (new - old).norm()


@pytest.mark.parametrize("dtype", DTYPES)
def test_folding_gives_the_bits_that_the_cpu_gives(
    kind: str, dtype: torch.dtype, make_net: Adapt, adapt: Adapt, x: Tensor
) -> None:
    """Float64 sums of another order round to the same value; the factors of the polar form are float32 products."""
    net = moved(adapt(make_net().to(dtype), adapter=kind, rank=2, seed=0))
    twin = copy.deepcopy(net).to(DEVICE)
    y = twin(x.to(DEVICE, dtype)).float()
    surgery.fold(net)
    surgery.fold(twin)
    tolerance = 1e-4 if dtype is torch.float32 else 0.05
    torch.testing.assert_close(twin(x.to(DEVICE, dtype)).float(), y, rtol=tolerance, atol=tolerance)
    for name, weight in net.named_parameters():
        found = twin.get_parameter(name).cpu()
        if kind in ("polar", "sym-srlora"):
            step = torch.finfo(dtype).eps
            torch.testing.assert_close(found, weight, rtol=2 * step, atol=step)
        else:
            assert torch.equal(found, weight), name


def moved(net: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, adapter in adapters_of(net):
            for parameter in adapter.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return net


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_undo_restores_every_bit_after_training(
    kind: str, dtype: torch.dtype, make_net: Adapt, adapt: Adapt, x: Tensor
) -> None:
    net = make_net().to(DEVICE, dtype)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    adapt(net, adapter=kind, rank=2, seed=0, train=["norms"])
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], fused=True)
    net.train()(x.to(DEVICE, dtype)).square().sum().backward()
    optimizer.step()
    surgery.undo(net)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor.view(torch.uint8) if tensor.ndim else tensor,
                           before[name].view(torch.uint8) if tensor.ndim else before[name])  # fmt: skip


def test_everything_an_adapter_keeps_is_where_its_weight_is(
    kind: str, make_net: Adapt, adapt: Adapt
) -> None:
    """NCCL moves nothing that lies on the CPU."""
    net = adapt(make_net().to(DEVICE), adapter=kind, rank=2)
    for _, adapter in adapters_of(net):
        assert {t.device.type for t in (*adapter.parameters(), *adapter.buffers())} == {DEVICE}


def test_a_seed_gives_the_same_start_as_on_the_cpu(
    kind: str, make_net: Adapt, adapt: Adapt
) -> None:
    """Whatever the default device is."""
    here, there = make_net(), make_net().to(DEVICE)
    adapt(here, adapter=kind, rank=2, seed=0)
    with torch.device(DEVICE):
        adapt(there, adapter=kind, rank=2, seed=0)
    for (name, one), (_, other) in zip(adapters_of(here), adapters_of(there), strict=True):
        b, a = one.factors()
        d, c = (factor.cpu() for factor in other.factors())
        torch.testing.assert_close(d @ c, b @ a, rtol=1e-3, atol=1e-4, msg=name)
