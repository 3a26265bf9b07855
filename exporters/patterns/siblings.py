"""Linears of one input, made one: query, key and value of an attention that takes its operands as they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import getitem

import torch
from torch import Tensor, fx

from exporters.editor import Editor
from exporters.evaluate import Constants
from exporters.patterns.base import Refusal
from exporters.patterns.heads import linear_parts, weights_of
from surgery.anatomy.attention import Core
from surgery.anatomy.flow import Flow
from surgery.anatomy.graph import Graph, op_name

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Siblings:
    """Linears with one input, in graph order.

    Attributes:
        x: The input.
        linears: The nodes to replace.
        weight: (sum of out, in).
        bias: (sum of out,), or None.
        sizes: Output features of each.
    """

    x: fx.Node
    linears: tuple[fx.Node, ...]
    weight: Tensor
    bias: Tensor | None
    sizes: tuple[int, ...]

    def write(self, editor: Editor, module: str) -> None:
        """Put one linear and a split before the first of them."""
        with editor.before(self.linears[0]):
            joined = editor.linear(f"{module}.joined", self.x, self.weight, self.bias)
            parts = editor.node(aten.split_with_sizes.default, joined, list(self.sizes), -1)
            for number, linear in enumerate(self.linears):
                editor.replace(linear, editor.node(getitem, parts, number))


def find_siblings(core: Core, graph: Graph, flow: Flow) -> Iterator[Siblings]:
    """The linears nearest to query, key and value, by their input, where there are several of one."""
    reads = {
        read.node
        for operand in (core.query, core.key, core.value)
        for read in flow.origins(operand).reads
        if op_name(read.node) == "linear"
    }
    groups: dict[fx.Node, list[fx.Node]] = defaultdict(list)
    for node in sorted(reads, key=graph.order.__getitem__):
        x = node.args[0]
        assert isinstance(x, fx.Node)
        groups[x].append(node)
    for x, linears in groups.items():
        joined = _join(x, linears, Constants(graph)) if len(linears) > 1 else None
        if joined is not None:
            yield joined


def _join(x: fx.Node, linears: Iterable[fx.Node], constants: Constants) -> Siblings | None:
    weights, biases = [], []
    for node in linears:
        parts = linear_parts(node)
        found = Refusal("no linear") if parts is None else weights_of(parts, constants)
        if isinstance(found, Refusal):
            return None
        weight, bias = found
        weights.append(weight)
        biases.append(weight.new_zeros(len(weight)) if bias is None else bias)
    vector = torch.cat(biases)
    sizes = tuple(len(weight) for weight in weights)
    return Siblings(x, tuple(linears), torch.cat(weights), vector if vector.any() else None, sizes)
