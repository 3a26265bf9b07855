"""A write into a slice is read as what it leaves behind, unless something else sees the same memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import export
from torch.nn import functional as F

from surgery.anatomy.graph import op_name
from surgery.anatomy.writes import without_writes


class Latent(nn.Module):
    """Keys are put together in place, as in LongCat."""

    def forward(self, nope: Tensor, rotary: Tensor) -> Tensor:
        keys = nope.new_empty(2, 5, 6)
        keys[..., :4].copy_(nope)
        keys[..., 4:].copy_(rotary)
        return F.gelu(keys)


class Seen(nn.Module):
    """A slice taken before the write is used after it."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = x * 2
        first = x[:, :1]
        x[:, :2].copy_(y)
        return first + 1


class Row(nn.Module):
    """A row of a slice; the number is spread over it."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = x.clone()
        x[:, 1:][0].copy_(y)
        return x


def run(model: nn.Module, *inputs: Tensor) -> tuple[list[str], Tensor]:
    program = without_writes(export(model, inputs, strict=False))
    program.graph_module.recompile()
    names = [op_name(node) for node in program.graph.nodes]
    (found,) = program.graph_module(*inputs)
    return names, found


def test_a_write_into_a_slice_becomes_a_scatter() -> None:
    inputs = torch.randn(2, 5, 4), torch.randn(2, 5, 2)
    names, found = run(Latent(), *inputs)
    assert names.count("slice_scatter") == 2 and torch.equal(found, Latent()(*inputs))


def test_a_row_of_a_slice_is_put_back_into_both() -> None:
    inputs = torch.randn(2, 4), torch.randn(1)
    names, found = run(Row(), *inputs)
    assert "select_scatter" in names and torch.equal(found, Row()(*inputs))


def test_a_write_that_another_slice_sees_is_left_alone() -> None:
    inputs = torch.randn(2, 4), torch.randn(2, 2)
    names, _ = run(Seen(), *inputs)
    assert "slice_scatter" not in names
