"""Linears over tokens between a projection and its attention, as Linformer has them.

They lie nearer to the attention than the projection does. What tells them apart is where their output
channels go: not into the channels of the operand, where those of a linear behind them do go.
"""

from __future__ import annotations

from torch import fx

from surgery.anatomy.axes import carried, einsum_terms
from surgery.anatomy.flow import Flow
from surgery.anatomy.graph import op_name, shape_of
from surgery.anatomy.linears import LinearRead

Dims = frozenset[int]


def token_mixers(operand: fx.Node, channels: tuple[int, ...], flow: Flow) -> frozenset[LinearRead]:
    """The linear reads behind an operand that mix its tokens.

    Args:
        operand: What an attention reads.
        channels: Its dimensions that are channels: what the scores sum over, what a value keeps.
        flow: The walks over the graph.
    """
    if flow.origins(operand, through_activations=True).residual:
        return frozenset()
    apart = _apart(operand, channels, flow)
    found: set[LinearRead] = set()
    for read in sorted(apart, key=lambda read: flow.graph.order[read.node]):
        if _is_projected(read.x, flow) and not flow.origins(read.x).reads & apart - found:
            found.add(read)
    return frozenset(found)


def _is_projected(node: fx.Node, flow: Flow) -> bool:
    """Whether a value is made by linears alone, and is no residual stream."""
    origins = flow.origins(node)
    return bool(origins.reads) and not origins.blockers and not origins.residual


def _apart(operand: fx.Node, channels: tuple[int, ...], flow: Flow) -> frozenset[LinearRead]:
    """Every read behind an operand whose output channels are none of its channels."""
    dims = len(shape_of(operand))
    waiting: dict[fx.Node, Dims | None] = {operand: frozenset(dim % dims for dim in channels)}
    found: set[LinearRead] = set()
    while waiting:
        node = max(waiting, key=flow.graph.order.__getitem__)  # all that use it come before it
        wanted, read = waiting.pop(node), flow.ends.get(node)
        if wanted is None:
            continue
        if read is None:
            before = {s: _behind(node, s, wanted) for s in flow.followed(node, True)}
        elif wanted.isdisjoint(dim % len(shape_of(node)) for dim in read.channel_dims):
            found.add(read)
            before = {read.x: _behind_read(read, wanted)} if _is_projected(read.x, flow) else {}
        else:
            continue
        for source, own in before.items():
            known = waiting.get(source, frozenset())
            waiting[source] = None if own is None or known is None else known | own
    return frozenset(found)


def _behind(node: fx.Node, source: fx.Node, wanted: Dims) -> Dims | None:
    """The dimensions of a source that become the wanted ones of a value; None where that is not known."""
    parts = source.meta["val"]
    first = parts[0] if isinstance(parts, list | tuple) else parts
    labels = carried(node, source, tuple(frozenset({dim}) for dim in range(first.ndim)))
    return None if labels is None else frozenset().union(*(labels[dim] for dim in wanted))


def _behind_read(read: LinearRead, wanted: Dims) -> Dims:
    """The dimensions of what a read multiplies that become the wanted ones, none of them its channels."""
    if op_name(read.node) != "einsum":
        return wanted
    terms, result = einsum_terms(read.node)
    factors = read.node.args[1]
    assert isinstance(factors, list | tuple)
    term = terms[factors.index(read.x)]
    return frozenset(term.index(result[dim]) for dim in wanted if result[dim] in term)
