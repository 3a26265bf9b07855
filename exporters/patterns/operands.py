"""Query, key and value as they are, brought into the shape that the operators take."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from exporters.editor import Editor
from exporters.evaluate import Evaluator, NotConstantError, index_tensor
from exporters.patterns.base import is_move
from exporters.patterns.heads import Gathered
from surgery.anatomy.graph import Graph, shape_of

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Operand:
    """Query, key or value.

    Attributes:
        node: (batch, heads, length, size), its last two dimensions swapped if ``transposed``, or
            (batch, length, size), which is one head.
        flat: The same as (batch, length, heads * size), if the graph holds it.
        transposed: Whether the graph hands over the transpose.
        repeats: How many query heads share one head.
        factors: What it is multiplied with.
    """

    node: fx.Node
    flat: fx.Node | None
    transposed: bool = False
    repeats: int = 1
    factors: tuple[fx.Node, ...] = ()

    def joined(self, editor: Editor) -> fx.Node:
        """(batch, length, heads * size)."""
        if self.flat is not None:
            return self.flat
        node = self.node
        for factor in self.factors:
            node = editor.node(aten.mul.Tensor, node, factor)
        if self.transposed:
            node = editor.node(aten.transpose.int, node, -1, -2)
        if len(shape_of(self.node)) == 3:
            return node
        if self.repeats > 1:
            node = editor.node(aten.unsqueeze.default, node, 2)
            node = editor.node(aten.expand.default, node, [-1, -1, self.repeats, -1, -1])
            node = editor.node(aten.flatten.using_ints, node, 1, 2)
        node = editor.node(aten.transpose.int, node, 1, 2)
        return editor.node(aten.flatten.using_ints, node, 2, 3)


def flat_operand(operand: fx.Node, transposed: bool, graph: Graph) -> fx.Node | None:
    """The node behind some moves where the operand's heads lie side by side, if there is one."""
    batch, heads, length, size = shape_of(operand)
    if transposed:
        length, size = size, length
    node = operand
    while is_move(node):
        node = node.all_input_nodes[0]
        if shape_of(node) != (batch, length, heads * size):
            continue
        start = index_tensor(shape_of(node))
        try:
            found = Evaluator(graph, {node: start})(operand)
        except NotConstantError:
            return None
        expected = start.view(batch, length, heads, size).transpose(1, 2)
        return node if torch.equal(found, expected.mT if transposed else expected) else None
    return None


def with_heads(
    joined: fx.Node, gathered: Gathered | None, result: fx.Node, heads: int, editor: Editor
) -> fx.Node:
    """What takes the place of the attended values, given them as (batch, length, heads * size)."""
    if gathered is not None:
        return gathered.shaped(joined, editor)
    if len(shape_of(result)) == 3:
        return joined
    split = editor.node(aten.unflatten.int, joined, 2, [heads, -1])
    return editor.node(aten.transpose.int, split, 1, 2)
