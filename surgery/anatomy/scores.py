"""From the product of query and key to a softmax, and from there to the product with the values."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from surgery.anatomy.axes import (
    Labels,
    carried,
    carried_along,
    factors_of,
    product_operands,
    summed,
)
from surgery.anatomy.flow import Flow
from surgery.anatomy.graph import op_name, shape_of
from surgery.anatomy.operators import MOVES, NORMS, PRODUCTS, SCALES

_SCORE_OPS = MOVES | SCALES | {"tanh", "log", "log_softmax", "exp", "sigmoid", "relu"}


def is_product(node: fx.Node, flow: Flow) -> bool:
    """Whether the node multiplies two activations as matrices."""
    if op_name(node) not in PRODUCTS or node in flow.reader.by_node:
        return False
    operands = product_operands(node)
    return len(operands) == 2 and all(operand in flow.active for operand in operands)


def asks_with_a_parameter(node: fx.Node, flow: Flow) -> bool:
    """Whether the node multiplies an activation with something learned: a query without a projection, say."""
    if op_name(node) not in PRODUCTS or node in flow.reader.by_node:
        return False
    operands = product_operands(node)
    learned = [operand for operand in operands if operand in flow.learned - flow.active]
    return len(operands) == 2 and len(learned) == 1


@dataclass(frozen=True)
class Scores:
    """What lies behind a softmax.

    Attributes:
        products: Products of two activations, nearest first; else the nearest of one with something learned.
        mixed: Whether heads are mixed on the way.
        labels: Which factor of the first product each dimension of the softmax comes from, if known.
    """

    products: tuple[fx.Node, ...]
    mixed: bool
    labels: Labels | None


def scores_behind(softmax: fx.Node, flow: Flow) -> Scores:
    """The products behind a softmax."""
    found: list[fx.Node] = []
    learned: list[fx.Node] = []
    mixed = False
    after: dict[fx.Node, fx.Node] = {}
    queue = [softmax]
    for node in queue:
        for source in node.all_input_nodes:
            if source in after or source not in flow.active:
                continue
            after[source] = node
            if is_product(source, flow):
                found.append(source)
            elif asks_with_a_parameter(source, flow):
                learned.append(source)
            elif _mixes_heads(source, flow):
                mixed = True
                queue.append(source)
            elif _keeps_scores(source, flow):
                queue.append(source)
    found = found or learned[:1]  # beside activations, a table of positions is no query
    labels = carried_along(after, found[0], factors_of(found[0])) if found else None
    return Scores(tuple(found), mixed, labels)


def _keeps_scores(node: fx.Node, flow: Flow) -> bool:
    if node.op != "call_function" or node in flow.reader.by_node:
        return False
    return op_name(node) in _SCORE_OPS - NORMS


def _mixes_heads(node: fx.Node, flow: Flow) -> bool:
    """A small square linear or 1x1 convolution over the head dimension of the scores."""
    read = flow.reader.by_node.get(node)
    return read is not None and read.in_features == read.out_features and len(shape_of(node)) == 4


@dataclass(frozen=True)
class Weighing:
    """The product of the probabilities with a value.

    Attributes:
        result, value: The product, and its other factor.
        mixed: Whether heads are mixed on the way.
        summed: For each dimension of the probabilities that it sums over, the factors of the scores
            that this one comes from; empty where that is not known.
    """

    result: fx.Node
    value: fx.Node
    mixed: bool
    summed: tuple[frozenset[int], ...]


def product_after(softmax: fx.Node, labels: Labels | None, flow: Flow) -> Weighing | None:
    """The product of what a softmax gives with a value; ``labels`` are those of :class:`Scores`."""
    mixed = False
    known: dict[fx.Node, Labels | None] = {softmax: labels}
    queue = [softmax]
    for node in queue:
        for user in sorted(node.users, key=flow.graph.order.__getitem__):
            if user in known:
                continue
            if is_product(user, flow):
                operands, own = product_operands(user), known[node]
                values = [operand for operand in operands if operand not in known]
                if len(values) == 1:
                    dims = summed(user, operands.index(node)) if own is not None else ()
                    over = tuple(own[dim] for dim in dims) if own is not None else ()
                    return Weighing(user, values[0], mixed, over)
            known[user] = carried(user, node, known[node])
            if _mixes_heads(user, flow):
                mixed = True
                queue.append(user)
            elif _keeps_scores(user, flow) or op_name(user) in {"batch_norm", "layer_norm"}:
                queue.append(user)
    return None
