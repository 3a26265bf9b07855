"""Ways of multiplying an activation with a weight that a model may take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import surgery
from surgery.anatomy.types import Layout
from surgery.operations.by_name import layout_of

WIDTH = 16
Multiply = Callable[[Any, Tensor], Tensor]


class Projected(nn.Module):
    """Query, key, value and output by ``multiply``."""

    def __init__(self, layer: Callable[[], nn.Module], multiply: Multiply) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (layer() for _ in range(4))
        self.multiply = multiply

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.multiply(layer, x) for layer in (self.q, self.k, self.v))
        return x + self.multiply(self.o, F.scaled_dot_product_attention(q, k, v))


def linear() -> nn.Module:
    return nn.Linear(WIDTH, WIDTH)


WAYS: dict[str, tuple[Callable[[], nn.Module], Multiply]] = {
    "dots": (linear, lambda layer, x: torch.einsum("...d,od->...o", x, layer.weight)),
    "no result written": (linear, lambda layer, x: torch.einsum("b...d, zd", x, layer.weight)),
    "same padding": (
        lambda: nn.Conv1d(WIDTH, WIDTH, 1, padding="same"),
        lambda layer, x: layer(x.mT).mT,
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_each_way_is_read_and_proved(way: str) -> None:
    torch.manual_seed(0)
    model, inputs = Projected(*WAYS[way]), torch.randn(2, 24, WIDTH)
    anatomy = surgery.read(model, inputs)
    (site,) = anatomy.sites
    assert [p.module for p in site.projections] == ["q", "k", "v", "o"]
    assert all(p.whole for p in site.projections) and not anatomy.unplaced
    assert surgery.verify(model, anatomy, inputs).proved


def test_words_pad_a_kernel_of_one_by_nothing() -> None:
    assert layout_of(nn.Conv2d(4, 4, 1, padding="same")) is Layout.CONV
    assert layout_of(nn.Conv2d(4, 4, 3, padding="same")) is None
