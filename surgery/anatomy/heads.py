"""Heads: the linears whose result a model returns."""

from __future__ import annotations

from torch import fx

from surgery.anatomy.flow import Flow
from surgery.anatomy.graph import op_name
from surgery.anatomy.linears import LinearRead
from surgery.anatomy.operators import MOVES
from surgery.anatomy.softmaxes import LOG_SOFTMAXES, SOFTMAXES

_CLASSES = SOFTMAXES | LOG_SOFTMAXES | {"sigmoid", "argmax"}


def find_heads(flow: Flow) -> set[LinearRead]:
    """Linear reads that an output shows, scaled or averaged at most, and that feed no other linear.

    Where no output does, those of which it shows the probabilities or the best class.
    """
    shown = [node for node in flow.graph.outputs if node in flow.graph.data]
    found = {read for node in shown for read in _shown_by(_before_soft_cap(node), flow)}
    return found or {read for node in shown for read in _shown_by(_before_classes(node), flow)}


def _shown_by(node: fx.Node, flow: Flow) -> frozenset[LinearRead]:
    origins = flow.origins(node)
    final = not origins.blockers and all(not flow.next_reads(r.node) for r in origins.reads)
    return origins.reads if final else frozenset()


def _before_classes(node: fx.Node) -> fx.Node:
    """Before the softmax, sigmoid or argmax of a model that ends in one, and before moves that follow it."""
    while op_name(node) in _CLASSES | MOVES and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
    return node


def _before_soft_cap(node: fx.Node) -> fx.Node:
    """``cap * tanh(logits / cap)`` shows the logits; a pooler's plain tanh is something else."""
    scaled = node.args[0] if op_name(node) == "mul" else None
    if isinstance(scaled, fx.Node) and op_name(scaled) == "tanh":
        source = scaled.args[0]
        if isinstance(source, fx.Node) and op_name(source) == "div":
            return source
    return node
