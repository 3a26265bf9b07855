"""Feed-forward blocks: a linear into an activation, a linear out of it, and perhaps a gate beside it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from surgery.anatomy.flow import Flow
from surgery.anatomy.graph import op_name
from surgery.anatomy.linears import LinearRead
from surgery.anatomy.operators import ACTIVATIONS, MOVES, NORMS, SCALES
from surgery.anatomy.provenance import rows_reaching
from surgery.anatomy.types import Rows, indices, run

_GATING = frozenset({"sigmoid", "hardsigmoid"})


@dataclass(frozen=True, eq=False)
class FeedForwardReads:
    """The linear reads of one feed-forward block, with the rows of each role."""

    up: tuple[LinearRead, Rows]
    gate: tuple[LinearRead, Rows] | None
    down: LinearRead


def find_feed_forward(flow: Flow, taken: set[LinearRead]) -> list[FeedForwardReads]:
    """Every feed-forward block whose linears play no other role yet."""
    found = []
    for read in flow.reader.reads:
        fed = read.x in flow.graph.data and read not in taken
        block = _match(read, flow, taken) if fed else None
        if block is not None:
            found.append(block)
    return found


def _match(down: LinearRead, flow: Flow, taken: set[LinearRead]) -> FeedForwardReads | None:
    origins = flow.origins(down.x, through_activations=True)
    sources = sorted(origins.reads, key=lambda read: flow.graph.order[read.node])
    if origins.blockers or not 1 <= len(sources) <= 2 or down in sources:
        return None
    packed = sources[0] in taken and len(sources) == 1
    alone = all(flow.next_reads(source.node) == {down} for source in sources)
    if not packed and (taken & set(sources) or not alone):
        return None
    region = flow.region(sources[0].node, [down.x])
    for source in sources[1:]:
        region |= flow.region(source.node, [down.x])
    if not any(_activates(node) for node in region) or _gates_channels(down):
        return None
    if len(sources) == 2:
        return _gated_by_two(sources, down, region, flow)
    whole = sources[0].rows
    rows = rows_reaching(sources[0], [down.x], flow)[0] if packed else whole
    if packed and rows == whole:
        return None  # what attention reads, too, is no row of a feed-forward packed beside it
    return _by_one(sources[0], down, region, rows, flow)


def _activates(node: fx.Node) -> bool:
    """Whether a node is a nonlinearity of the values themselves.

    A bound of 0 from below is one (relu); other bounds, and any of a norm, guard a division.
    """
    if op_name(node) != "clamp_min":
        return op_name(node) in ACTIVATIONS
    source, bound = node.args[:2]
    while isinstance(source, fx.Node) and op_name(source) in MOVES | NORMS | {"add", "mul"}:
        source = source.args[0]
    direct = isinstance(source, fx.Node) and op_name(source) not in SCALES
    return direct and isinstance(bound, int | float) and bound == 0


def _gates_channels(down: LinearRead) -> bool:
    """Squeeze-and-excitation ends in a sigmoid: a gate on channels, not a feed-forward block."""
    nodes = [down.node]
    for node in nodes:
        for user in node.users:
            if op_name(user) in _GATING:
                return True
            if op_name(user) in MOVES:
                nodes.append(user)
    return False


def _gated_by_two(
    sources: list[LinearRead], down: LinearRead, region: frozenset[fx.Node], flow: Flow
) -> FeedForwardReads | None:
    activated = [read for read in sources if _is_activated(read, region, flow)]
    if len(activated) != 1:
        return None
    gate = activated[0]
    up = next(read for read in sources if read is not gate)
    return FeedForwardReads((up, up.rows), (gate, gate.rows), down)


def _is_activated(read: LinearRead, region: frozenset[fx.Node], flow: Flow) -> bool:
    """Whether an activation follows the read before its value meets the other branch."""
    return any(_activates(node) for node in _own_branch(read.node, region))


def _own_branch(start: fx.Node, region: frozenset[fx.Node]) -> list[fx.Node]:
    """Nodes of the region that depend on ``start`` alone."""
    branch = [start]
    for node in branch:
        for user in node.users:
            sources = [source for source in user.all_input_nodes if source in region]
            if user in region and user not in branch and all(s in branch for s in sources):
                branch.append(user)
    return branch


def _by_one(
    source: LinearRead, down: LinearRead, region: frozenset[fx.Node], rows: Rows, flow: Flow
) -> FeedForwardReads:
    """Plain, or up and gate fused in one weight: then a product joins two disjoint sets of ``rows``."""
    for node in sorted(region, key=flow.graph.order.__getitem__):
        if op_name(node) == "glu" and rows == source.rows:
            return _glu(source, down)
        sides = [s for s in node.all_input_nodes if s in region]
        if op_name(node) == "mul" and len(sides) == 2:
            first, second = rows_reaching(source, sides, flow)
            if _disjoint(first, second):
                gated = [_behind_activation(side, source.node) for side in sides]
                if gated == [True, False] or gated == [False, True]:
                    gate, up = (first, second) if gated[0] else (second, first)
                    return FeedForwardReads((source, up), (source, gate), down)
    return FeedForwardReads((source, rows), None, down)


def _glu(source: LinearRead, down: LinearRead) -> FeedForwardReads:
    """``glu(x)`` multiplies the first half with the sigmoid of the second."""
    half = source.out_features // 2
    up, gate = run(source.channels[:half]), run(source.channels[half:])
    return FeedForwardReads((source, (up,)), (source, (gate,)), down)


def _behind_activation(node: fx.Node, start: fx.Node) -> bool:
    stack, seen = [node], {node}
    while stack:
        current = stack.pop()
        if _activates(current):
            return True
        if current is not start and op_name(current) in MOVES | SCALES:
            new = [s for s in current.all_input_nodes if s not in seen]
            seen.update(new)
            stack.extend(new)
    return False


def _disjoint(first: Rows, second: Rows) -> bool:
    return bool(first) and bool(second) and set(indices(first)).isdisjoint(indices(second))
