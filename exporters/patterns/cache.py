"""Keys and values behind a cache, and behind the copies that grouped queries make of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from exporters.evaluate import Evaluator, NotConstantError, index_tensor
from exporters.patterns.base import is_move, keeps_values
from surgery.anatomy.graph import Graph, op_name, shape_of

_COPIES = frozenset({"expand", "repeat", "repeat_interleave"})


@dataclass(frozen=True, eq=False)
class Remembered:
    """Keys or values of a cached attention: ``joined = cat([past, new], -2)``."""

    past: fx.Node
    new: fx.Node
    joined: fx.Node


def shared_heads(operand: fx.Node, transposed: bool, heads: int, graph: Graph) -> fx.Node | None:
    """The node, (batch, key heads, length, size), whose heads the operand repeats for the query heads."""
    found = None if transposed else operand
    node, kept = operand, set[fx.Node]()
    while (same := keeps_values(node)) or is_move(node) or op_name(node) in _COPIES:
        if same:
            kept.add(node)
        node = node.all_input_nodes[0]
        shape = shape_of(node)
        if len(shape) != 4 or heads % shape[1]:
            continue
        start = index_tensor(shape)
        try:
            copied = Evaluator(graph, {node: start}, kept)(operand)
        except NotConstantError:
            return found
        copied = copied.mT if transposed else copied
        if torch.equal(copied, start.repeat_interleave(heads // shape[1], 1)):
            found = node
    return found


def remembered(node: fx.Node, graph: Graph) -> Remembered | None:
    """The two parts of ``cat([past, new], -2)``, if the past is an input of the graph."""
    if (
        op_name(node) != "cat"
        or len(node.all_input_nodes) != 2
        or node.args[1:] not in {(-2,), (2,)}
    ):
        return None
    past, new = node.all_input_nodes
    given = past.op == "placeholder" and graph.tensor_name(past) is None
    return Remembered(past, new, node) if given else None
