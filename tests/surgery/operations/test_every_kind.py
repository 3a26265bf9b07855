"""Every kind of adapter on every way to write a projection: compiled, checkpointed, under autocast, copied."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from surgery import adapters
from surgery.anatomy.types import Access, Layout
from surgery.operations.adapted import Adapted, dress
from surgery.operations.graft import Graft

KINDS = [kind for kind in adapters.names() if not kind.startswith("test-")]
SITES: dict[str, tuple[Callable[[], nn.Module], Layout, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(8, 12), Layout.OUT_IN, (3, 5, 8)),
    "Conv1D": (lambda: Conv1D(12, 8), Layout.IN_OUT, (3, 5, 8)),
    "conv2d": (lambda: nn.Conv2d(8, 12, 1), Layout.CONV, (2, 8, 3, 3)),
}
ACCESS = {"module": Access.MODULE, "parameter": Access.PARAMETER}
Case = tuple[nn.Module, Tensor]


@pytest.fixture(params=SITES)
def site(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=ACCESS)
def access(request: pytest.FixtureRequest) -> Access:
    return ACCESS[request.param]


@pytest.fixture(params=KINDS)
def case(request: pytest.FixtureRequest, site: str, access: Access) -> Case:
    """A module with two adapters of one kind on its rows, away from their start, and an input."""
    torch.manual_seed(0)
    make, layout, shape = SITES[site]
    module = make().requires_grad_(False)
    matrix = module.weight.t() if layout is Layout.IN_OUT else module.weight.flatten(1)
    graft = Graft(layout, access, 12)
    for slot, run in {"query": (0, 5, 1), "value": (7, 12, 1)}.items():
        options = {"rectangular": "truncate"} if request.param == "symlora" else {}
        adapter = adapters.get(request.param)(8, 5, rank=2, **options)
        adapter.start(matrix[slice(*run)].detach(), torch.Generator().manual_seed(1))
        for parameter in adapter.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape)
        graft.place(slot, adapter, (run,))
        if adapter.correction() is not None:
            graft.original = module.weight.detach().clone()
    dress(module, {"weight": graft}).refresh_base()
    return module, torch.randn(shape)


def passes(module: nn.Module, run: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    """Output, and the gradients of the input and of all that trains."""
    module.zero_grad()
    x = x.clone().requires_grad_()
    y = run(x)
    y.float().square().sum().backward()
    grads = [p.grad for p in module.parameters() if p.requires_grad]
    assert grads and all(grad is not None and grad.any() for grad in grads)
    return [y.detach(), x.grad, *(grad.clone() for grad in grads)]


def close(found: list[Tensor], expected: list[Tensor], share: float) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert (one.float() - other.float()).norm() <= share * other.float().norm()


def test_compiles_whole_without_a_graph_break(case: Case, access: Access) -> None:
    """``fullgraph`` refuses any break; by their parameter, every kind compiles the same way."""
    module, x = case
    if access is Access.PARAMETER and not isinstance(module, nn.Linear):
        pytest.skip("composed weights are tried on linear layers")
    expected = passes(module, module, x)
    torch._dynamo.reset()
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    close(passes(module, compiled, x), expected, 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_base_of_16_bits_is_adapted_in_float32(case: Case, dtype: torch.dtype) -> None:
    """Output and the input's gradient in the base's dtype, the factors' in float32; within its rounding."""
    module, x = case
    expected = passes(module, module, x)
    for parameter in module._parameters.values():
        if parameter is not None:
            parameter.data = parameter.data.to(dtype)
    module.refresh_base()
    found = passes(module, module, x.to(dtype))
    assert [part.dtype for part in found[:2]] == [dtype, dtype]
    assert all(grad.dtype is torch.float32 for grad in found[2:])
    close(found, expected, 0.05)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_gives_the_same_gradients(case: Case, reentrant: bool) -> None:
    module, x = case
    again = passes(module, lambda x: checkpoint(module, x, use_reentrant=reentrant), x)
    close(again, passes(module, module, x), 1e-6)


def test_autocast_gives_the_plain_module_s_dtype_and_float32_gradients(case: Case) -> None:
    module, x = case

    def run(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return module(x)

    found = passes(module, run, x)
    assert found[0].dtype is torch.bfloat16
    assert all(grad.dtype is torch.float32 for grad in found[1:])
    close(found, passes(module, module, x), 0.03)


def test_under_autocast_too_a_linear_layer_is_one_product(case: Case, access: Access) -> None:
    """Autocast computes one of the polar form's factors in bfloat16 and leaves the other one."""
    module, x = case
    if access is Access.PARAMETER or not isinstance(module, nn.Linear):
        pytest.skip("only linear layers that are called are products")
    with torch.autocast("cpu", torch.bfloat16):
        assert type(module(x).grad_fn).__name__ == "_ProductBackward"


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_compute_the_same_and_train_alone(
    case: Case, copier: Callable[[nn.Module], nn.Module]
) -> None:
    module, x = case
    twin, y = copier(module), module(x)
    assert isinstance(twin, Adapted) and torch.equal(twin(x), y)
    with torch.no_grad():
        for parameter in twin.adapters.parameters():
            parameter.add_(1.0)
    assert torch.equal(module(x), y) and not torch.equal(twin(x), y)
