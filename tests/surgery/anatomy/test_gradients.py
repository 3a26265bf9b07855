"""Whether a gradient comes to a projection is read from the graph, and is what a backward shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import surgery
from surgery.anatomy.capture import capture
from surgery.errors import PlanError

WIDTH = 8
Forward = Callable[["Net", Tensor], Any]


class Net(nn.Module):
    """An attention and a head; ``way`` says how they are joined."""

    def __init__(self, way: Forward) -> None:
        super().__init__()
        self.way = way
        self.q, self.k, self.v, self.o, self.head = (nn.Linear(WIDTH, WIDTH) for _ in range(5))
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor) -> Any:
        return self.way(self, x)

    def body(self, x: Tensor) -> Tensor:
        attended = F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))
        return x + self.o(attended)


class Own(torch.autograd.Function):
    """Gradients are off in its forward, and come by its own backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 2


def plain(net: Net, x: Tensor) -> Tensor:
    return net.head(net.body(x))


def no_grad(net: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = net.body(x)
    return net.head(y)


def inference(net: Net, x: Tensor) -> Tensor:
    with torch.inference_mode():
        y = net.body(x)
    return net.head(y.clone())


@torch.no_grad()
def decorated(net: Net, x: Tensor) -> Tensor:
    return net.head(net.body(x))


def autocast_and_writes(net: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            y = net.body(x)
        made = torch.zeros_like(x)
        made[:, :2] = y[:, :2].float()
    return net.head(made + x)


def detached(net: Net, x: Tensor) -> Tensor:
    return net.head(net.body(x).detach())


def value_detached(net: Net, x: Tensor) -> Tensor:
    attended = F.scaled_dot_product_attention(net.q(x), net.k(x), net.v(x).detach())
    return net.head(net.o(attended))


def weight_detached(net: Net, x: Tensor) -> Tensor:
    key = F.linear(x, net.k.weight.detach())
    return net.head(net.o(F.scaled_dot_product_attention(net.q(x), key, net.v(x))))


def rows_detached(net: Net, x: Tensor) -> Tensor:
    q, k, v = net.qkv(x).chunk(3, -1)
    return net.head(net.o(F.scaled_dot_product_attention(q, k.detach(), v)))


def scores_detached(net: Net, x: Tensor) -> Tensor:
    q, k, v = net.qkv(x).chunk(3, -1)
    return net.head(net.o((q @ k.mT).softmax(-1).detach() @ v))


def teacher(net: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        aim = net.body(x)
    return net.head(net.body(x)), aim


def function(net: Net, x: Tensor) -> Tensor:
    return net.head(Own.apply(net.body(x)))


def checkpointed(net: Net, x: Tensor) -> Tensor:
    return net.head(checkpoint(net.body, x.requires_grad_(), use_reentrant=True))


WAYS: tuple[Forward, ...] = (
    plain, no_grad, inference, decorated, autocast_and_writes, detached, value_detached,
    weight_detached, rows_detached, scores_detached, teacher, function, checkpointed,
)  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_it_is_what_a_backward_shows(way: Forward) -> None:
    torch.manual_seed(0)
    net, x = Net(way), torch.randn(2, 5, WIDTH)
    projections = surgery.read(net, x).projections
    outputs = net(x.clone())
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    total = sum(output.square().sum() for output in outputs) + net.head.bias.sum()
    total.backward()
    assert {p.role.short for p in projections} >= {"query", "key", "value", "output"}
    for p in projections:
        gradient = net.get_parameter(p.weight_name).grad
        rows = [channel for run in p.rows for channel in range(*run)]
        comes = gradient is not None and bool(gradient[rows].any())
        assert p.reaches_output is comes, p


def test_an_adapter_without_a_gradient_is_refused() -> None:
    x = torch.randn(2, 5, WIDTH)
    with pytest.raises(PlanError, match=r"(?s)no gradient comes to it.*detach"):
        surgery.plan(Net(no_grad), "vit-attn-qv", example_inputs=x)


def test_a_model_that_runs_without_gradients_alone_is_read() -> None:
    def writes_a_weight(net: Net, x: Tensor) -> Tensor:
        net.head.weight[:1].zero_()
        return plain(net, x)

    anatomy = surgery.read(Net(writes_a_weight), torch.randn(2, 5, WIDTH))
    assert len(anatomy.sites) == 1 and all(p.reaches_output for p in anatomy.projections)


def test_other_captures_stay_as_they_are() -> None:
    program = capture(Net(no_grad), (torch.randn(2, 5, WIDTH),))
    assert not any("detach" in str(node.target) for node in program.graph.nodes)
