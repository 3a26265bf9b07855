"""Batch norm in eval mode goes into the weights before or behind it; where that would be wrong, it stays."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from exporters.capture import capture
from exporters.fuse import fuse
from exporters.inputs import collect
from exporters.patterns.batch_norm import BatchNormMatch, BatchNormPattern
from surgery.anatomy.graph import Graph, op_name

IMAGE = (2, 4, 5, 5)


def norm(channels: int, kind: type[nn.Module] = nn.BatchNorm2d, **options) -> nn.Module:
    made = kind(channels, **options)
    made.running_mean.normal_()
    made.running_var.uniform_(0.5, 2)
    if made.affine:
        nn.init.normal_(made.weight, 1, 0.3)
        nn.init.normal_(made.bias)
    return made


class Flattened(nn.Module):
    """LeViT's: a linear over tokens, a norm over all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 6, bias=False), norm(6, nn.BatchNorm1d)

    def forward(self, x):
        x = self.linear(x)
        return self.norm(x.flatten(0, 1)).reshape_as(x)


class Turned(Flattened):
    def forward(self, x):
        return self.norm(self.linear(x).transpose(1, 2))


class Shuffled(Flattened):
    """The channels are others by the time the norm sees them."""

    def forward(self, x):
        return self.norm(self.linear(x).unflatten(-1, (2, 3)).mT.flatten(2).flatten(0, 1))


class ReadTwice(Flattened):
    def forward(self, x):
        x = self.linear(x).flatten(0, 1)
        return self.norm(x) + x


class Branches(nn.Module):
    """Pre-norm: two products read the norm, nothing else does."""

    def __init__(self, other: nn.Module) -> None:
        super().__init__()
        self.norm, self.one, self.other = norm(4), nn.Conv2d(4, 6, 3), other

    def forward(self, x):
        x = self.norm(x.relu())
        return self.one(x).sum() + self.other(x).sum()


FOLDED = {
    "convolution": (nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), norm(6)), IMAGE, 1),
    "strided, grouped, padded": (
        nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1, groups=2), norm(6)), IMAGE, 1,
    ),
    "without affine": (nn.Sequential(nn.Conv2d(4, 6, 1), norm(6, affine=False)), IMAGE, 1),
    "flattened tokens": (Flattened(), (2, 3, 4), 1),
    "turned tokens": (Turned(), (2, 3, 4), 1),
    "both readers": (Branches(nn.Conv2d(4, 3, 1)), IMAGE, 1),
    "two norms want the weights between": (
        nn.Sequential(nn.ReLU(), norm(4), nn.Conv2d(4, 6, 1), norm(6)), IMAGE, 2,
    ),
}  # fmt: skip
LEFT = {
    "other channels": (Shuffled(), (2, 3, 4)),
    "read twice": (ReadTwice(), (2, 3, 4)),
    "zeros in the padding are not shifted": (
        nn.Sequential(nn.ReLU(), norm(4), nn.Conv2d(4, 6, 3, padding=1)), IMAGE,
    ),
    "one reader is no product": (Branches(nn.Sigmoid()), IMAGE),
    "behind an activation": (nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), norm(4)), IMAGE),
}  # fmt: skip


def captured(model: nn.Module, shape: tuple[int, ...]):
    torch.manual_seed(0)
    x = torch.randn(shape)
    model = model.eval()
    return model, x, capture(model, collect(model, x, dynamic=False))


def norms(program) -> int:
    return sum(op_name(node) == "batch_norm" for node in program.graph.nodes)


@pytest.mark.parametrize("name", FOLDED)
def test_it_goes_into_the_weights(name):
    model, shape, count = FOLDED[name]
    model, x, made = captured(model, shape)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fusion = fuse(made, model)
    assert fusion.notes == (f"{count} batch norms were folded into weights",)
    assert norms(made.program) == 0
    (given,) = made.program.graph_signature.user_inputs
    with torch.no_grad():
        torch.testing.assert_close(made.program.module()(**{given: x}), model(x))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", LEFT)
def test_where_it_cannot_it_stays(name):
    model, _, made = captured(*LEFT[name])
    fusion = fuse(made, model)
    assert fusion.notes == ()
    assert norms(made.program) == 1


def test_weights_that_are_fed_at_run_time_are_no_constants():
    model, _, made = captured(nn.Sequential(nn.Conv2d(4, 6, 3), norm(6)), IMAGE)
    graph = Graph(made.program)
    (node,) = (n for n in graph.nodes if op_name(n) == "batch_norm")
    assert isinstance(BatchNormPattern().match(node, graph), BatchNormMatch)
    assert fuse(made, model, fed={"1.weight"}).notes == ()
    assert norms(made.program) == 1
