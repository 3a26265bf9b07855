"""Stacked weights: the matrices of many experts or groups in one parameter, multiplied by ``bmm`` or a grouped product.

No projection can name their rows, so they are told rather than passed over.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from surgery.anatomy.flow import Flow
from surgery.anatomy.graph import op_name, shape_of
from surgery.anatomy.operators import CONVOLUTIONS, MOVES, SCALES

# Every library writes its own grouped product: whatever neither moves, scales nor convolves is one.
_OTHERWISE = MOVES | SCALES | CONVOLUTIONS | {"embedding", "_assert_tensor_metadata"}


def stacked_weights(flow: Flow) -> dict[str, fx.Node]:
    """The first product that reads each parameter of three dimensions or more, by parameter name."""
    stacks = {name for name, weight in flow.reader.parameters.items() if _is_stack(weight.shape)}
    found: dict[str, fx.Node] = {}
    for node in flow.graph.nodes:
        if op_name(node) in _OTHERWISE or node in flow.reader.by_node:
            continue
        for operand in node.all_input_nodes:
            name = _parameter_behind(operand, flow)
            if name is not None and name in stacks:
                found.setdefault(name, node)
    return found


def shows_a_stack(node: fx.Node, flow: Flow) -> bool:
    """Whether a weight is one matrix of a parameter of three dimensions or more, or shows a parameter as many."""
    name = _parameter_behind(node, flow)
    parameter = flow.reader.parameters.get(name) if name is not None else None
    return parameter is not None and (_is_stack(parameter.shape) or _is_stack(shape_of(node)))


def _is_stack(shape: Sequence[int]) -> bool:
    return sum(size > 1 for size in shape) > 2


def _parameter_behind(node: fx.Node, flow: Flow) -> str | None:
    """The parameter that ``node`` shows a part of: its first source through moves, indexing included."""
    while node.op == "call_function" and op_name(node) in MOVES and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return flow.graph.tensor_name(node)
