"""Following values through the graph, from a projection to what uses it and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from torch import fx

from surgery.anatomy.graph import Graph, op_name, shape_of
from surgery.anatomy.linears import LinearRead, LinearReader
from surgery.anatomy.operators import (
    ACTIVATIONS,
    ADDITIONS,
    FACTORIES,
    MODULATIONS,
    MOVES,
    PRODUCTS,
    SCALES,
    SHAPE_FROM_SECOND,
    SUMS,
)


@dataclass(frozen=True)
class Origins:
    """Where a value comes from.

    Attributes:
        reads: The nearest linear reads behind it.
        blockers: Other inputs-dependent nodes that the walk had to stop at.
        residual: Whether a read meets a blocker in a sum: a residual stream, not a projection.
    """

    reads: frozenset[LinearRead] = frozenset()
    blockers: frozenset[fx.Node] = frozenset()
    residual: bool = False

    def __or__(self, other: Origins) -> Origins:
        return Origins(
            self.reads | other.reads,
            self.blockers | other.blockers,
            self.residual or other.residual,
        )


class Flow:
    """Walks over one graph; every answer is remembered, so that reading stays linear in its size."""

    def __init__(self, graph: Graph, reader: LinearReader) -> None:
        self.graph, self.reader = graph, reader
        # A learned query has no input behind it, but its projection is as real as any other.
        self.active = graph.data | graph.descendants(read.node for read in reader.reads)
        weights = [
            n for n in graph.program.graph.nodes if graph.tensor_name(n) in reader.parameters
        ]
        self.learned = graph.descendants(weights)
        self.ends = dict(reader.by_node)
        self._origins: dict[tuple[fx.Node, bool], Origins] = {}

    def origins(self, node: fx.Node, *, through_activations: bool = False) -> Origins:
        """The linear reads that ``node`` is made from, by moves and scales alone (or activations too).

        A multiplier without a linear behind it (rotary tables, masks, gates from elsewhere)
        does not count; a summand without one is reported as a blocker.
        """
        pending = [node]
        while pending:
            current = pending[-1]
            needed = [
                source
                for source in self.followed(current, through_activations)
                if (source, through_activations) not in self._origins
            ]
            if needed:
                pending.extend(needed)
                continue
            pending.pop()
            self._origins[current, through_activations] = self._combine(
                current, through_activations
            )
        return self._origins[node, through_activations]

    def pass_through(self, reads: Iterable[LinearRead]) -> None:
        """Let walks between a projection and an attention go on past these reads: they only mix tokens."""
        for read in reads:
            del self.ends[read.node]
            self._origins.clear()

    def followed(self, node: fx.Node, through_activations: bool) -> list[fx.Node]:
        """The inputs of a node that :meth:`origins` goes on to."""
        if not self._is_passage(node, through_activations):
            return []
        operands = node.all_input_nodes
        if op_name(node) in SHAPE_FROM_SECOND:
            operands = operands[:1]
        sources = [source for source in operands if source in self.active]
        return [source for source in sources if op_name(source) not in FACTORIES]

    def _is_passage(self, node: fx.Node, through_activations: bool) -> bool:
        if node.op != "call_function" or node in self.ends:
            return False
        if node in self.reader.by_node:
            return True
        name = op_name(node)
        if (
            name in MOVES
            or name in SCALES
            or is_depthwise(node)
            or self.multiplies_a_constant(node)
        ):
            return True
        return through_activations and name in ACTIVATIONS

    def multiplies_a_constant(self, node: fx.Node) -> bool:
        """Whether the node is a product with a matrix that nobody learns: rotations, a Fourier basis."""
        if op_name(node) not in PRODUCTS:
            return False
        factors = node.all_input_nodes
        constant = [f for f in factors if f not in self.active and f not in self.learned]
        return len(constant) == len(factors) - 1

    def _combine(self, node: fx.Node, through_activations: bool) -> Origins:
        read = self.ends.get(node)
        if read is not None:
            return Origins(frozenset({read}))
        if not self._is_passage(node, through_activations):
            return Origins(blockers=frozenset({node}))
        parts = [
            self._origins[source, through_activations]
            for source in self.followed(node, through_activations)
        ]
        if op_name(node) in MODULATIONS and any(part.reads for part in parts):
            parts = [part for part in parts if part.reads]
        joined = _union(parts)
        return replace(joined, residual=True) if _meets(node, parts) else joined

    def region(self, start: fx.Node, stop: Iterable[fx.Node]) -> frozenset[fx.Node]:
        """The nodes on a path from ``start`` to any of ``stop`` that meets no other linear read."""
        stops = set(stop)
        last = max(self.graph.order[node] for node in stops)
        after = set(self.forward(start, until=self.ends.__contains__, last=last))
        found: set[fx.Node] = set(stops & after)
        for node in sorted(after, key=self.graph.order.__getitem__, reverse=True):
            if any(user in found for user in node.users):
                found.add(node)
        return frozenset(found)

    def behind(self, ends: Iterable[fx.Node], first: int) -> frozenset[fx.Node]:
        """Every node that ``ends`` depend on, themselves included, none earlier than ``first``."""
        seen = set(ends)
        stack = list(seen)
        while stack:
            for source in stack.pop().all_input_nodes:
                if source not in seen and self.graph.order[source] >= first:
                    seen.add(source)
                    stack.append(source)
        return frozenset(seen)

    def forward(
        self, start: fx.Node, *, until: Callable[[fx.Node], bool], last: int | None = None
    ) -> list[fx.Node]:
        """Every node reached from ``start``, not going past nodes for which ``until`` holds."""
        seen, stack = {start}, [start]
        while stack:
            node = stack.pop()
            if node is not start and until(node):
                continue
            for user in node.users:
                late = last is not None and self.graph.order[user] > last
                if user not in seen and not late:
                    seen.add(user)
                    stack.append(user)
        return list(seen)

    def next_reads(self, node: fx.Node) -> frozenset[LinearRead]:
        """The linear reads reached from ``node`` before any other linear read."""
        reads = self.reader.by_node
        reached = self.forward(node, until=lambda n: n in reads)
        return frozenset(reads[n] for n in reached if n in reads and n is not node)


def is_depthwise(node: fx.Node) -> bool:
    """Whether the node is a convolution that keeps every channel to itself."""
    if op_name(node) not in {"conv1d", "conv2d", "conv3d"}:
        return False
    groups = node.args[6] if len(node.args) > 6 else node.kwargs.get("groups", 1)
    channels = shape_of(node)[1] if shape_of(node) else 0
    return isinstance(groups, int) and groups > 1 and channels % groups == 0


def adds(node: fx.Node) -> bool:
    """Whether the node joins values as summands or neighbours (and so may close a residual branch)."""
    return op_name(node) in ADDITIONS


def _meets(node: fx.Node, parts: list[Origins]) -> bool:
    """Whether a sum adds something that comes from no linear at all to something that does."""
    projected = any(part.reads for part in parts)
    return op_name(node) in SUMS and projected and not all(part.reads for part in parts)


def _union(parts: Iterable[Origins]) -> Origins:
    total = Origins()
    for part in parts:
        total |= part
    return total
