"""A factor for each channel behind a linear goes into its weight; anything else stays."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from exporters.capture import capture
from exporters.inputs import collect
from exporters.patterns.layer_scale import LayerScaleMatch, LayerScalePattern
from surgery.anatomy.graph import Graph, op_name


class Scaled(nn.Module):
    def __init__(self, bias: bool = True, shape: tuple[int, ...] = (6,)) -> None:
        super().__init__()
        self.linear, self.dropout = nn.Linear(4, 6, bias=bias), nn.Dropout(0.2)
        self.gamma = nn.Parameter(torch.randn(shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum() + self.gamma * self.dropout(self.linear(x))


class OneChannel(Scaled):
    def __init__(self) -> None:
        super().__init__(shape=())
        self.linear = nn.Linear(4, 1)


class Batched(Scaled):
    def forward(self, x):
        return x @ self.linear.weight.T[None] * self.gamma


class ByInput(Scaled):
    def forward(self, x):
        return self.linear(x) * x.sum(-1, keepdim=True)


class ReadTwice(Scaled):
    def forward(self, x):
        y = self.linear(x)
        return y * self.gamma + y


class ByLength(Scaled):
    def forward(self, x):
        return self.linear(x) * torch.full([6], 1 / x.shape[0])


class AfterActivation(Scaled):
    def forward(self, x):
        return self.linear(x).relu() * self.gamma


def matches(model: nn.Module, x: torch.Tensor, dynamic: bool = False) -> list[LayerScaleMatch]:
    model = model.eval()
    graph = Graph(capture(model, collect(model, x, dynamic)).program)
    found = [LayerScalePattern().match(n, graph) for n in graph.nodes if op_name(n) == "mul"]
    return [match for match in found if isinstance(match, LayerScaleMatch)]


@pytest.mark.parametrize(
    "model", [Scaled(), Scaled(bias=False), Scaled(shape=(1, 1, 6)), OneChannel()]
)
def test_the_factors_go_into_the_weight(model):
    x = torch.randn(2, 3, 4)
    (match,) = matches(model, x)
    found = nn.functional.linear(x, match.weight, match.bias)
    torch.testing.assert_close(x.sum() + found, model.eval()(x))


@pytest.mark.parametrize(
    "model",
    [
        ByInput(),
        ReadTwice(),
        AfterActivation(),
        Scaled(shape=(3, 6)),
        Scaled(shape=(1,)),
        Scaled(shape=(1, 1, 1, 6)),
        Batched(),
    ],
)
def test_anything_else_is_left(model):
    assert matches(model, torch.randn(2, 3, 4)) == []


def test_a_factor_that_follows_from_a_dynamic_size_is_no_constant():
    x = torch.randn(2, 3, 4)
    assert matches(ByLength(), x, dynamic=True) == []
    assert len(matches(ByLength(), x)) == 1
