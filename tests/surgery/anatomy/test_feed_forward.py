"""What makes two linears a feed-forward block, and what only looks like it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import surgery

WIDTH = 16
Between = Callable[[Tensor], Tensor]


class Bottleneck(nn.Module):
    """Two linears with something between them."""

    def __init__(self, between: Between) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(WIDTH, 8), nn.Linear(8, WIDTH), nn.Linear(WIDTH, 3)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x + self.b(self.between(self.a(x)))).mean(1))


def blocks(between: Between) -> list[list[str]]:
    anatomy = surgery.read(Bottleneck(between), torch.randn(2, 5, WIDTH))
    return [[f"{p.role.short}: {p.module}" for p in b.projections] for b in anatomy.feed_forward]


NORMS: dict[str, Between] = {
    "normalize": lambda y: F.normalize(y, dim=-1),
    "normalize without a bound": lambda y: F.normalize(y, dim=-1, eps=0),
    "root mean square": lambda y: y * (y.square().mean(-1, keepdim=True) + 1e-6).rsqrt(),
    "layer norm": lambda y: F.layer_norm(y, (8,)),
}


@pytest.mark.parametrize("norm", NORMS)
def test_a_norm_is_no_activation(norm: str) -> None:
    assert not blocks(NORMS[norm])


ACTIVATIONS: dict[str, Between] = {
    "gelu": F.gelu,
    "bounded by 0": lambda y: y.clamp_min(0),
    "bounded by 0 behind a norm": lambda y: F.layer_norm(y, (8,)).clamp_min(0.0),
    "squared relu": lambda y: y.relu().square(),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_nonlinearity_of_the_values_is_one(activation: str) -> None:
    assert blocks(ACTIVATIONS[activation]) == [["up: a", "down: b"]]
