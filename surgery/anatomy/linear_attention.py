"""Linear attention: ``query (key^T value)``, the key perhaps behind a softmax or an activation.

Two products without a softmax between them can associate either way. The first one sums over tokens here,
over channels in ordinary attention; a model uses this form where tokens outnumber the channels of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from surgery.anatomy.attention import Core
from surgery.anatomy.axes import (
    REORDERS,
    Labels,
    carried_along,
    factors_of,
    product_operands,
    summed,
)
from surgery.anatomy.flow import Flow
from surgery.anatomy.graph import op_name, shape_of
from surgery.anatomy.operators import MOVES, NORMS, SCALES
from surgery.anatomy.scores import is_product

_MATRIX_PRODUCTS = frozenset({"matmul", "bmm"})
_SOFTMAXES = frozenset({"softmax", "_softmax"})
# A state that a recurrence decays, adds to or gathers (Mamba, delta rules) is no context.
_DIRECT = REORDERS | {"to", "_to_copy", "contiguous", "clone", "expand", "view", "reshape", "_unsafe_view",
                      "alias", "detach"}  # fmt: skip
_CARRIES = (MOVES | SCALES) - NORMS


@dataclass(frozen=True)
class _Context:
    """A product of two activations, and the factor that each dimension comes from where it is used."""

    node: fx.Node
    labels: Labels | None


def find_linear_attention(flow: Flow) -> list[Core]:
    """Every linear attention of the graph."""
    matches = (_match(node, flow) for node in flow.graph.nodes)
    return [core for core in matches if core is not None]


def _match(node: fx.Node, flow: Flow) -> Core | None:
    if op_name(node) not in _MATRIX_PRODUCTS or not is_product(node, flow):
        return None
    left, right = product_operands(node)
    for context_side, other, on_left in ((left, right, True), (right, left, False)):
        context = _context_behind(context_side, flow, _DIRECT)
        if context is not None and _context_behind(other, flow) is None:
            return _core(node, context, other, on_left, flow)
    return None


def _core(
    node: fx.Node, context: _Context, query: fx.Node, on_left: bool, flow: Flow
) -> Core | None:
    first, second = product_operands(context.node)
    if any(_context_behind(side, flow) is not None for side in (first, second)):
        return None
    if _summed(context.node) <= _summed(node):
        return None
    # The second product sums over the channels of the key: the side of the context that meets the query.
    (dim,) = summed(node, 0 if on_left else 1)
    key_last = context.labels[dim] == {1} if context.labels is not None else on_left
    key, value = (second, first) if key_last else (first, second)
    query, key, value = operands = [_before_softmax(side) for side in (query, key, value)]
    if any(not flow.origins(o, through_activations=True).reads for o in operands):
        return None
    return Core("linear", context.node, query, key, value, node)


def _context_behind(
    node: fx.Node, flow: Flow, carries: frozenset[str] = _CARRIES
) -> _Context | None:
    """The one product that ``node`` carries through ``carries``, or None."""
    found: list[fx.Node] = []
    after: dict[fx.Node, fx.Node] = {}
    queue = [node]
    for here in queue:
        if is_product(here, flow):
            found.append(here)
            continue
        if op_name(here) not in carries or here in flow.reader.by_node:
            continue
        for source in here.all_input_nodes:
            if source not in after and source in flow.active:
                after[source] = here
                queue.append(source)
    if len(found) != 1:
        return None
    return _Context(found[0], carried_along(after, found[0], factors_of(found[0])))


def _summed(product: fx.Node) -> int:
    """Length of the dimension that a matrix product sums over."""
    return shape_of(product_operands(product)[0])[-1]


def _before_softmax(node: fx.Node) -> fx.Node:
    """What a softmax on the way to ``node`` was taken of."""
    current = node
    while op_name(current) in _CARRIES | _SOFTMAXES and current.all_input_nodes:
        if op_name(current) in _SOFTMAXES:
            return current.all_input_nodes[0]
        current = current.all_input_nodes[0]
    return node
