"""Query, key and value side by side, as one matrix product makes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from exporters.editor import Editor
from exporters.patterns.base import Refusal
from exporters.patterns.heads import Heads, one_input, trace_heads
from surgery.anatomy.graph import Graph, shape_of


@dataclass(frozen=True, eq=False)
class Packed:
    """One product in place of those that made query, key and value.

    Attributes:
        x: What is projected, (batch, length, in).
        weight: (query + key + value, in), heads side by side.
        bias: (query + key + value,), or None.
        products: How many products it takes the place of.
    """

    x: fx.Node
    weight: Tensor
    bias: Tensor | None
    products: int

    def write(self, editor: Editor, module: str) -> fx.Node:
        """(batch, length, query + key + value)."""
        return editor.linear(f"{module}.packed", self.x, self.weight, self.bias)


def pack(operands: Sequence[fx.Node], graph: Graph) -> Packed | Refusal:
    """Trace query, key and value, (batch, heads, length, size), to linears of one input."""
    heads = []
    for role, operand in zip(("query", "key", "value"), operands, strict=True):
        found = trace_heads(role, operand, graph, transposed=False)
        if not isinstance(found, Heads):
            return found
        heads.append(found)
    x = one_input(heads, shape_of(operands[0]))
    if isinstance(x, Refusal):
        return x
    return side_by_side(x, heads)


def side_by_side(x: fx.Node, heads: Sequence[Heads]) -> Packed:
    """The projections of one input as one."""
    bias = torch.cat([h.bias for h in heads])
    weight = torch.cat([h.weight for h in heads])
    return Packed(x, weight, bias if bias.any() else None, len({h.linear for h in heads}))
