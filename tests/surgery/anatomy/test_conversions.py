"""A module that converts itself to what it already is can be captured; one that really changes is converted."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import surgery
from surgery.anatomy.conversions import idle_conversions


class Router(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.linear = self.linear.to(torch.float32)
        found: Tensor = self.linear(x)
        return found


def test_a_module_that_converts_itself_to_what_it_is_is_read() -> None:
    (projection,) = surgery.read(Router(), torch.randn(2, 4)).projections
    assert projection.weight_name == "linear.weight"


def test_what_changes_is_converted() -> None:
    with idle_conversions():
        assert nn.Linear(2, 2).to(torch.float64).weight.dtype is torch.float64
        assert nn.Linear(2, 2).to("meta").weight.is_meta
        whole = nn.Module()
        whole.register_buffer("count", torch.zeros(2, dtype=torch.long))
        assert whole.to(torch.float64) is whole and whole.count.dtype is torch.long
