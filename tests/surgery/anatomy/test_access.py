"""Who reads a weight decides where its adapters act, so that fold is the adapted model for every reader."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import surgery
from surgery.anatomy.types import Access

WIDTH = 8
Use = Callable[["Net", Tensor, Tensor], Any]


class Net(nn.Module):
    """An attention whose key weight is used once more, by ``use``."""

    def __init__(self, use: Use) -> None:
        super().__init__()
        self.use = use
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Any:
        y = self.o(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))
        return self.use(self, x, y)


def gate(net: Net, x: Tensor, y: Tensor) -> Tensor:
    return y * torch.einsum("...d,od->...o", x, net.k.weight).sigmoid()


def penalty(net: Net, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return y, (net.k.weight @ net.k.weight.t() - torch.eye(WIDTH)).square().sum()


def product(net: Net, x: Tensor, y: Tensor) -> Tensor:
    return y + F.linear(x, net.k.weight)


def some_rows(net: Net, x: Tensor, y: Tensor) -> Tensor:
    return y * net.k.weight[:3].float().norm()


def half(net: Net, x: Tensor, y: Tensor) -> Tensor:
    return y * net.k.weight.chunk(2)[1].sum()


def returned(net: Net, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return y, net.k.weight


def nothing(net: Net, x: Tensor, y: Tensor) -> Tensor:
    return y


def called_again(net: Net, x: Tensor, y: Tensor) -> Tensor:
    return y + net.k(net.k(x))


def shape_alone(net: Net, x: Tensor, y: Tensor) -> Tensor:
    return y.to(net.k.weight.dtype) + torch.zeros_like(net.k.weight)[0]


OTHERWISE: tuple[Use, ...] = (gate, penalty, product, some_rows, half, returned)
BY_THE_MODULE: tuple[Use, ...] = (nothing, called_again, shape_alone)


@pytest.mark.parametrize("use", OTHERWISE + BY_THE_MODULE)
def test_fold_is_the_adapted_model_for_every_reader(use: Use) -> None:
    torch.manual_seed(0)
    net, x = Net(use), torch.randn(2, 5, WIDTH)
    anatomy = surgery.read(net, x)
    access = {p.module: p.access for p in anatomy.projections}
    assert access.pop("k") is (Access.PARAMETER if use in OTHERWISE else Access.MODULE)
    assert set(access.values()) == {Access.MODULE}
    policy = {"select": [{"roles": ["attention.key"]}], "adapter": {"kind": "lora", "rank": 2}}
    surgery.apply(net, policy, anatomy=anatomy)
    for name, parameter in net.named_parameters():
        if "adapters" in name:
            nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        adapted = pytree.tree_leaves(net(x))
        surgery.fold(net)
        folded = pytree.tree_leaves(net(x))
    torch.testing.assert_close(folded, adapted, rtol=1e-5, atol=1e-5)
