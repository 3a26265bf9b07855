"""Queries that see no key: torch's attention gives 0 for them, operators and translations an average or NaN."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor, fx

from exporters.capture import Captured
from exporters.evaluate import Evaluator, NotConstantError
from exporters.patterns.masks import MaskReading, read_mask
from exporters.patterns.sdpa import mask_of
from exporters.rewrite import Rewriter
from surgery.anatomy.graph import Graph, op_name, shape_of

aten = torch.ops.aten


@dataclass(frozen=True)
class Unseen:
    """A mask under which a query may see nothing.

    Attributes:
        mask: Boolean, or low where it hides; broadcast to (batch, heads, queries, keys).
        padding: Whether it is the model's padding mask instead, (batch, keys).
        below: What is not above this is hidden.
    """

    mask: fx.Node
    padding: bool = False
    below: float = -inf

    def zero(self, joined: fx.Node, heads: int, size: int, rewriter: Rewriter) -> fx.Node:
        """Attended values, (batch, queries, heads * size), as 0 for every query that sees nothing."""

        def make() -> fx.Node:
            seen = self._by_query(rewriter)
            if self.padding or len(shape := shape_of(self.mask)) < 3 or shape[-3] == 1:
                return seen
            by_head = rewriter.node(aten.unsqueeze.default, seen, -1)
            spread = rewriter.node(aten.expand.default, by_head, [-1, -1, heads, size])
            return rewriter.node(aten.flatten.using_ints, spread, 2)

        seen = rewriter.once((Unseen, self.mask, heads, size), self.mask, make)
        # A product with 0 would not do: below -inf everywhere the operator makes NaN.
        return rewriter.node(aten.where.ScalarOther, seen, joined, 0.0)

    def mend(
        self,
        joined: fx.Node,
        values: fx.Node,
        heads: tuple[int, int],
        size: int,
        rewriter: Rewriter,
    ) -> fx.Node:
        """The same after an operator that sees earlier keys alone: a finite number hides all alike, later ones too.

        ``values`` are (batch, keys, key heads * size); ``heads`` the numbers of query and of key heads.
        """
        if self.below == -inf:
            return self.zero(joined, heads[0], size, rewriter)
        key = (Unseen, self.mask, "by query")
        seen = rewriter.once(key, self.mask, lambda: self._by_query(rewriter))
        mean = rewriter.node(aten.mean.dim, values, [1], True)
        by_head = rewriter.node(aten.unflatten.int, mean, 2, [heads[1], 1, size])
        spread = rewriter.node(aten.expand.default, by_head, [-1, -1, -1, heads[0] // heads[1], -1])
        shared = rewriter.node(aten.flatten.using_ints, spread, 2)
        return rewriter.node(aten.where.self, seen, joined, shared)

    def _by_query(self, rewriter: Rewriter) -> fx.Node:
        return rewriter.node(aten.transpose.int, self._seen(rewriter), 1, 2)

    def choose(self, result: fx.Node, rewriter: Rewriter) -> fx.Node:
        """The same for (batch, heads, queries, size), which may be NaN there."""

        def make() -> fx.Node:
            return rewriter.node(aten.unsqueeze.default, self._seen(rewriter), -1)

        seen = rewriter.once((Unseen, self.mask), self.mask, make)
        return rewriter.node(aten.where.ScalarOther, seen, result, 0.0)

    def _seen(self, rewriter: Rewriter) -> fx.Node:
        """Whether a query sees anything, (batch, heads, queries), any of them 1 where they are alike."""
        if self.mask.meta["val"].is_floating_point():
            highest = rewriter.node(aten.amax.default, self.mask, [-1])
            seen = rewriter.node(aten.gt.Scalar, highest, self.below)
        else:
            seen = rewriter.node(aten.any.dim, self.mask, -1)
        missing = 4 - len(shape_of(self.mask))
        for _ in range(missing):
            seen = rewriter.node(aten.unsqueeze.default, seen, -1 if self.padding else 0)
        return seen


def unseen(mask: object, reading: MaskReading, graph: Graph) -> Unseen | None:
    """The mask of an attention, if a query may see nothing under it.

    Args:
        mask: An argument of ``scaled_dot_product_attention``.
        reading: What it says.
        graph: The program.
    """
    if not isinstance(mask, fx.Node) or reading.finite:
        return None
    if mask not in graph.data and (reading.bias is None or not _may_hide_all(mask, graph)):
        return None
    kept = mask.meta["val"].dtype is torch.bool
    if kept and reading.padding is not None and not reading.causal:
        return Unseen(reading.padding, padding=True)
    return Unseen(mask)


def _may_hide_all(mask: fx.Node, graph: Graph) -> bool:
    """Whether a mask that follows from no input hides all keys from a query, as far as that is known."""
    if not all(isinstance(size, int) for size in mask.meta["val"].shape):
        return True
    try:
        value: Tensor = Evaluator(graph)(mask)
    except NotConstantError:
        return True
    hides = ~value if value.dtype is torch.bool else value == -inf
    return bool(hides.all(-1).any())


@contextmanager
def zeros_where_nothing_is_seen(captured: Captured) -> Iterator[None]:
    """Inside, each ``scaled_dot_product_attention`` is followed by what torch's exporter forgets of it."""
    graph, rewriter = Graph(captured.program), Rewriter(captured.program)
    added: list[tuple[fx.Node, fx.Node]] = []
    for node in [n for n in graph.nodes if op_name(n) == "scaled_dot_product_attention"]:
        mask = mask_of(node)
        if mask is None:
            continue
        known = mask in graph.data
        reading = MaskReading(bias=mask) if known else read_mask(mask, graph, captured.inputs)
        found = unseen(mask, reading, graph)
        if found is not None:
            with rewriter.before(node.next):
                chosen = found.choose(node, rewriter)
            node.replace_all_uses_with(
                chosen, delete_user_cb=lambda user, new=chosen: user is not new
            )
            added.append((node, chosen))
    captured.program.graph_module.recompile()
    try:
        yield
    finally:
        for node, chosen in added:
            chosen.replace_all_uses_with(node)
        rewriter.finish()
