"""Every way of writing a softmax: the operator, or its steps spelled out."""

from __future__ import annotations

from torch import fx

from surgery.anatomy.graph import op_name
from surgery.anatomy.operators import MOVES, SCALES

SOFTMAXES = frozenset({"softmax", "_softmax", "_safe_softmax"})
SPELLED = frozenset({"div", "exp", "true_divide"})
LOG_SOFTMAXES = frozenset({"log_softmax", "_log_softmax"})


def softmax_dim(node: fx.Node) -> int | None:
    """The dimension over which a node's value is a softmax; None if it is none."""
    if op_name(node) in SOFTMAXES:
        return _dim(node)
    if op_name(node) == "exp":
        return _from_logarithm(node.args[0])
    return _from_own_sum(*node.args[:2]) if op_name(node) in SPELLED else None


def _from_logarithm(logarithm: object) -> int | None:
    """``log_softmax(x).exp()``, or ``(x - x.logsumexp(dim)).exp()``."""
    if not isinstance(logarithm, fx.Node):
        return None
    if op_name(logarithm) in LOG_SOFTMAXES:
        return _dim(logarithm)
    x, total, *_ = (*logarithm.args, None, None)
    if op_name(logarithm) != "sub" or not isinstance(total, fx.Node):
        return None
    return _dim(total) if op_name(total) == "logsumexp" and total.args[0] is x else None


def _from_own_sum(above: object, below: object) -> int | None:
    """``e / e.sum(dim)``, where ``e`` is an exponential."""
    total, exponential = _behind(below, "sum"), _behind(above, "exp")
    if total is None or exponential is None or total.args[0] is not above:
        return None
    return _dim(total)


def _behind(node: object, name: str) -> fx.Node | None:
    """The nearest operator of a name behind a value that is only moved and scaled after it."""
    while isinstance(node, fx.Node) and op_name(node) != name:
        node = node.args[0] if op_name(node) in MOVES | SCALES else None
    return node if isinstance(node, fx.Node) else None


def _dim(node: fx.Node) -> int | None:
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", -1)
    if isinstance(dim, list | tuple) and len(dim) == 1:
        (dim,) = dim
    return dim if isinstance(dim, int) else None
