"""The product of an adapted linear layer: every order of contraction is the same function."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from surgery.adapters import LoRA
from surgery.adapters.base import Adapter
from surgery.anatomy.types import Access, Layout
from surgery.errors import PlanError, StateError
from surgery.operations import product as home
from surgery.operations.adapted import dress
from surgery.operations.graft import Graft
from surgery.operations.product import product, set_contraction

ORDERS = ("merged", "low-rank")
Pairs = list[tuple[Tensor, Tensor]]
AS_ONE = {"own spans": False, "as one": True}


@pytest.fixture(autouse=True)
def _auto() -> Iterator[None]:
    yield
    set_contraction("auto")


@pytest.fixture(params=AS_ONE)
def laid(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Pairs on their own spans as on a CPU, or laid into one as on a GPU."""
    way: str = request.param
    monkeypatch.setattr(home, "_as_one", lambda x, ranks: AS_ONE[way])
    return way


def reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, pairs: Pairs, spans: list[tuple[int, int]]
) -> Tensor:
    """base + each delta on its rows, by plain autograd."""
    columns = list(F.linear(x, weight, bias).unbind(-1))
    for (start, _), (b, a) in zip(spans, pairs, strict=True):
        for i, delta in enumerate(F.linear(F.linear(x, a), b).unbind(-1)):
            columns[start + i] = columns[start + i] + delta
    return torch.stack(columns, -1)


def adapted(
    slots: dict[str, int], dtype: torch.dtype = torch.float32, **options: float
) -> nn.Module:
    """A linear layer 6 -> 12 with LoRAs on blocks of four rows; B is not zero."""
    torch.manual_seed(0)
    module = nn.Linear(6, 12).to(dtype).requires_grad_(False)
    graft = Graft(Layout.OUT_IN, Access.MODULE, 12)
    for slot, start in slots.items():
        adapter = LoRA(6, 4, rank=2, alpha=3, **options)
        adapter.start(module.weight[start : start + 4].float())
        nn.init.normal_(adapter.B)
        graft.place(slot, adapter, ((start, start + 4, 1),))
    return dress(module, {"weight": graft})


def passes(
    module: nn.Module, x: Tensor, run: Callable[[Tensor], Tensor] | None = None
) -> list[Tensor]:
    """Output, and the gradients of the input and of everything that trains."""
    x = x.clone().requires_grad_()
    y = (module if run is None else run)(x)
    y.square().sum().backward()
    grads = [p.grad.clone() for p in module.parameters() if p.grad is not None]
    module.zero_grad()
    return [y.detach(), x.grad, *grads]


def made_by_product(module: nn.Module, x: Tensor) -> bool:
    return type(module(x).grad_fn).__name__ == "_ProductBackward"


@pytest.mark.usefixtures("laid")
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
@pytest.mark.parametrize("order", ORDERS)
def test_every_order_is_the_sum_of_the_parts(order: str, data: st.DataObject) -> None:
    sizes = st.integers(1, 7)
    lead = data.draw(st.lists(sizes, max_size=3))
    width, out = data.draw(sizes), data.draw(st.integers(4, 12))
    cut = data.draw(st.integers(1, out - 1))
    spans = data.draw(st.sampled_from([[(0, out)], [(0, cut)], [(cut, out - cut), (0, cut)]]))
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32]))
    make = torch.Generator().manual_seed(data.draw(st.integers(0, 9)))

    def new(*shape: int) -> Tensor:
        return torch.randn(shape, generator=make, dtype=dtype).requires_grad_()

    x, weight = new(*lead, width), new(out, width).requires_grad_(False)
    bias = new(out) if data.draw(st.booleans()) else None
    pairs = [(new(n, r), new(r, width)) for _, n in spans for r in [data.draw(sizes)]]
    leaves = [t for t in (x, bias, *(f for p in pairs for f in p)) if t is not None]

    set_contraction(order)
    y, expected = product(x, weight, bias, pairs, spans), reference(x, weight, bias, pairs, spans)
    g = torch.randn(y.shape, generator=make, dtype=dtype)
    close = {"rtol": 1e-9, "atol": 1e-9} if dtype is torch.float64 else {"rtol": 2e-4, "atol": 2e-4}
    torch.testing.assert_close(y, expected, **close)
    ours, theirs = torch.autograd.grad(y, leaves, g), torch.autograd.grad(expected, leaves, g)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, **close)


@pytest.mark.usefixtures("laid")
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("spans", [[(0, 6)], [(4, 2), (0, 3)]])
def test_gradients_once_and_twice(order: str, spans: list[tuple[int, int]]) -> None:
    set_contraction(order)
    make = torch.Generator().manual_seed(0)

    def new(*shape: int) -> Tensor:
        return torch.randn(shape, generator=make, dtype=torch.float64).requires_grad_()

    weight = new(6, 4).detach()
    factors = [f for _, n in spans for f in (new(n, 2), new(2, 4))]

    def run(x: Tensor, bias: Tensor, *flat: Tensor) -> Tensor:
        return product(x, weight, bias, list(zip(flat[::2], flat[1::2], strict=True)), spans)

    inputs = (new(3, 2, 4), new(6), *factors)
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


@pytest.mark.usefixtures("laid")
@pytest.mark.parametrize("order", ["auto", *ORDERS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_all_dtypes_give_what_the_plain_parts_give(
    order: str, dtype: torch.dtype, autocast: bool
) -> None:
    if autocast and dtype is torch.float16:
        pytest.skip("torch mixes no bfloat16 autocast with float16 weights")
    module = adapted({"query": 0, "value": 8}, dtype)
    x = torch.randn(3, 5, 6).to(dtype)

    def run(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return module(x)

    set_contraction("plain")
    expected = passes(module, x, run)
    set_contraction(order)
    found = passes(module, x, run)
    exact = dtype is torch.float32 and not autocast
    size = 1e-5 if exact else 4e-2
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert (one - other).norm() <= size * other.norm()


def test_sixteen_bits_keep_an_update_that_the_weight_would_swallow() -> None:
    module = adapted({"query": 0}, torch.bfloat16)
    adapter = module.adapters.weight.query
    with torch.no_grad():
        module.weight.fill_(1.0)
        module.bias.zero_()
        adapter.A.zero_()[:, 0] = 0.02
        adapter.B.fill_(0.02)  # an update of 0.0012; the neighbours of 1 are 0.004 away
    x = torch.tensor([1.0, -1.0] * 3).repeat(100, 1).bfloat16()
    assert module(x)[0, 0].item() == pytest.approx(0.0012, rel=0.01)
    set_contraction("merged")
    assert module(x)[0, 0].item() == 0


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(order: str, reentrant: bool) -> None:
    set_contraction(order)
    module, x = adapted({"query": 0, "key": 4}), torch.randn(2, 5, 6)
    expected = passes(module, x)
    found = passes(module, x, lambda x: checkpoint(module, x, use_reentrant=reentrant))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_compute_alike_and_apart(copied: Callable[[nn.Module], nn.Module]) -> None:
    module, x = adapted({"query": 0}), torch.randn(4, 6)
    twin = copied(module)
    for one, other in zip(passes(twin, x), passes(module, x), strict=True):
        assert torch.equal(one, other)
    assert made_by_product(twin, x)


def test_compiled_without_a_graph_break() -> None:
    module, x = adapted({"query": 0, "value": 8}), torch.randn(2, 5, 6)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for one, other in zip(passes(module, x, compiled), passes(module, x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's forward mode
def test_transforms_of_functions_see_through_it() -> None:
    module, x = adapted({"query": 0}), torch.randn(4, 6)
    torch.testing.assert_close(torch.vmap(module)(x), module(x))
    found = torch.func.jacrev(module)(x[0])
    torch.testing.assert_close(found, torch.func.jacfwd(module)(x[0]))


class Halved(Adapter):
    """A user's own adapter: nothing but factors."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, rank=2)
        self.up = nn.Parameter(torch.ones(out_features, 2))
        self.down = nn.Parameter(torch.ones(2, in_features))

    def start(self, weight: Tensor, generator: torch.Generator | None = None) -> None:
        """As made."""

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.up / 2, self.down


class Bent(Halved):
    """One that is no product of factors, and says so in its forward."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh()


@pytest.mark.parametrize(("cls", "served"), [(Halved, True), (Bent, False)])
def test_anybodys_adapter_is_served_by_its_factors_unless_it_has_a_forward(
    cls: type[Halved], served: bool
) -> None:
    module = nn.Linear(6, 12).requires_grad_(False)
    graft = Graft(Layout.OUT_IN, Access.MODULE, 12)
    adapter = cls(6, 12)
    graft.place("query", adapter, ((0, 12, 1),))
    x = torch.randn(3, 6)
    expected = module(x) + adapter(x)
    torch.testing.assert_close(dress(module, {"weight": graft})(x), expected)
    assert made_by_product(module, x) is served


def test_what_has_to_be_seen_stays_plain() -> None:
    x = torch.randn(4, 6)
    dropping, hooked, trained = (adapted({"query": 0}, dropout=p) for p in (0.5, 0.0, 0.0))
    assert not made_by_product(dropping, x) and made_by_product(dropping.eval(), x)
    seen: list[Tensor] = []
    hooked.adapters.weight.query.register_forward_hook(lambda *parts: seen.append(parts[-1]))
    assert not made_by_product(hooked, x) and len(seen) == 1
    trained.weight.requires_grad_()
    trained(x).sum().backward()
    assert trained.weight.grad is not None


def kept(module: nn.Module, x: Tensor) -> int:
    """Bytes kept for the backward besides parameters and the input."""
    known = {t.untyped_storage().data_ptr() for t in (x, *module.parameters())}
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        module(x)
    return sum(sizes.values())


def test_nothing_as_large_as_weight_or_input_is_kept() -> None:
    module, x = adapted({"query": 0, "value": 8}), torch.randn(100, 6, requires_grad=True)
    factors = sum(p.nbytes for p in module.adapters.parameters())
    set_contraction("merged")
    assert kept(module, x) <= factors
    set_contraction("low-rank")
    assert kept(module, x) <= factors + 100 * 4 * 4
    set_contraction("plain")
    assert kept(module, x) > factors


def test_an_input_is_not_kept_where_no_A_trains() -> None:
    module, x = adapted({"query": 0}), torch.randn(100, 6, requires_grad=True)
    expected = passes(module, x.detach())[:2]
    module.adapters.weight.query.A.requires_grad_(False)
    y = module(x)
    assert all(t is None or t.shape != x.shape for t in y.grad_fn.saved_tensors)
    for one, other in zip(passes(module, x.detach())[:2], expected, strict=True):
        assert torch.equal(one, other)
    with pytest.raises(StateError, match="gradient of a gradient"):
        torch.autograd.grad(y.square().sum(), x, create_graph=True)


def test_auto_merges_from_so_many_tokens_a_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward along the 6 channels that come in, backward along the 12 that go out."""
    chosen: list[tuple[bool, bool]] = []
    original = home.Order

    def spy(*args: object, **kwargs: bool) -> object:
        chosen.append((kwargs["forward"], kwargs["backward"]))
        return original(*args, **kwargs)

    monkeypatch.setattr(home, "Order", spy)
    module = adapted({"query": 0})
    for tokens in (10, 11, 21, 22):
        module(torch.randn(tokens, 6))
    adapted({"query": 0}, torch.bfloat16)(torch.randn(1000, 6).bfloat16())
    assert chosen == [(False, False), (True, False), (True, False), (True, True), (False, False)]


def test_an_unknown_order_is_refused_and_changes_nothing() -> None:
    with pytest.raises(PlanError, match="contraction 'fast'"):
        set_contraction("fast")
    assert set_contraction("auto") == "auto"
