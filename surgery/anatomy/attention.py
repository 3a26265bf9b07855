"""Attention sites: one pattern a class, each says why it does not match."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import fx

from surgery.anatomy.axes import kept, product_operands, summed
from surgery.anatomy.flow import Flow
from surgery.anatomy.graph import op_name, shape_of
from surgery.anatomy.scores import Scores, Weighing, is_product, product_after, scores_behind
from surgery.anatomy.softmaxes import SOFTMAXES, SPELLED, softmax_dim


@dataclass(frozen=True, eq=False)
class Core:
    """One attention computation: ``result = f(query, key) value``.

    Attributes:
        kind: ``sdpa``, ``flex``, ``softmax`` or ``linear``.
        node: The scaled-dot-product or softmax node.
        query, key, value: The operands.
        result: The node that carries the attended values.
        notes: What is unusual about it.
        channels: The dimensions of query, key and value that are channels: the scores sum over the
            first two, the result keeps the third.
    """

    kind: str
    node: fx.Node
    query: fx.Node
    key: fx.Node
    value: fx.Node
    result: fx.Node
    notes: tuple[str, ...] = ()
    channels: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] = ((-1,), (-1,), (-1,))


@dataclass(frozen=True)
class NoMatch:
    """Why a node is not an attention; ``attention_like`` asks for it to be counted as unplaced."""

    why: str
    attention_like: bool = False


class AttentionPattern(Protocol):
    """Recognises one way of computing attention."""

    @property
    def ops(self) -> frozenset[str]:
        """Names of the operators that may start a match."""

    def match(self, node: fx.Node, flow: Flow) -> Core | NoMatch:
        """Return the attention computed at ``node``, or the reason why there is none."""


class ScaledDotProduct:
    """A call of ``scaled_dot_product_attention``."""

    ops = frozenset({"scaled_dot_product_attention"})

    def match(self, node: fx.Node, flow: Flow) -> Core | NoMatch:
        """See :class:`AttentionPattern`."""
        operands = [*node.args[:3]]
        operands += [node.kwargs[k] for k in ("query", "key", "value")[len(operands) :]]
        query, key, value = operands
        assert isinstance(query, fx.Node) and isinstance(key, fx.Node)
        assert isinstance(value, fx.Node)
        return Core("sdpa", node, query, key, value, node)


class FlexAttention:
    """A call of ``flex_attention``; whatever its score function does, the operands are these."""

    ops = frozenset({"flex_attention"})

    def match(self, node: fx.Node, flow: Flow) -> Core | NoMatch:
        """See :class:`AttentionPattern`."""
        query, key, value = node.args[:3]
        assert isinstance(query, fx.Node) and isinstance(key, fx.Node)
        assert isinstance(value, fx.Node)
        results = [u for u in node.users if op_name(u) == "getitem" and u.args[1] == 0]
        if not results:
            return NoMatch("nothing takes its result", attention_like=True)
        return Core("flex", node, query, key, value, results[0])


class SoftmaxBetweenProducts:
    """A softmax of a product of two activations, multiplied with a third."""

    ops = SOFTMAXES

    def match(self, node: fx.Node, flow: Flow) -> Core | NoMatch:
        """See :class:`AttentionPattern`."""
        return _between_products(node, flow)


class SpelledSoftmaxBetweenProducts:
    """The same where the softmax is ``e / e.sum(-1)``, or the exponential of a ``log_softmax``."""

    ops = SPELLED

    def match(self, node: fx.Node, flow: Flow) -> Core | NoMatch:
        """See :class:`AttentionPattern`."""
        if softmax_dim(node) is None:
            return NoMatch("it is no softmax")
        return _between_products(node, flow)


def _between_products(softmax: fx.Node, flow: Flow) -> Core | NoMatch:
    scores = scores_behind(softmax, flow)
    if not scores.products:
        return NoMatch("no product of two activations behind the softmax")
    found = product_after(softmax, scores.labels, flow)
    if found is None:
        like = is_product(scores.products[0], flow)
        return NoMatch("no product with a value after the softmax", attention_like=like)
    operands = product_operands(scores.products[0])
    key = _key(scores, softmax, found)
    sides = operands[1 - key], operands[key]
    value = product_operands(found.result).index(found.value)
    channels = (
        summed(scores.products[0], 1 - key),
        summed(scores.products[0], key),
        kept(found.result, value),
    )
    notes = _notes(scores, found)
    return Core("softmax", softmax, *sides, found.value, found.result, notes, channels)


PATTERNS: tuple[AttentionPattern, ...] = (
    ScaledDotProduct(),
    FlexAttention(),
    SoftmaxBetweenProducts(),
    SpelledSoftmaxBetweenProducts(),
)


def find_cores(flow: Flow) -> tuple[list[Core], list[tuple[fx.Node, NoMatch]]]:
    """Every attention computation of the graph, and what looked like one but was not resolved."""
    cores: list[Core] = []
    missed: list[tuple[fx.Node, NoMatch]] = []
    for node in flow.graph.nodes:
        for pattern in PATTERNS:
            if op_name(node) not in pattern.ops:
                continue
            found = pattern.match(node, flow)
            if isinstance(found, Core):
                cores.append(found)
            elif found.attention_like:
                missed.append((node, found))
    attended = {score for core in cores for score in scores_behind(core.node, flow).products}
    return cores, [
        (node, miss) for node, miss in missed if not _weighs_nothing(node, attended, flow)
    ]


def _weighs_nothing(softmax: fx.Node, attended: set[fx.Node], flow: Flow) -> bool:
    """Whether a softmax only shows the scores of an attention that was found, or is never used (SAM 2)."""
    if softmax not in flow.graph.live:
        return True
    return not attended.isdisjoint(scores_behind(softmax, flow).products[:1])


def _key(scores: Scores, softmax: fx.Node, found: Weighing) -> int:
    """Which factor of the scores is the key: the product with the values sums over it.

    The softmax runs over it too, but for slot attention, where slots compete for each token.
    """
    dim = softmax_dim(softmax)
    assert dim is not None
    if scores.labels is None:
        return int(dim % len(shape_of(softmax)) != len(shape_of(softmax)) - 2)
    sides = (frozenset[int]().union(*found.summed), scores.labels[dim])
    return next((factor for factors in sides if len(factors) == 1 for factor in factors), 1)


def _notes(scores: Scores, found: Weighing) -> tuple[str, ...]:
    notes = []
    if scores.mixed or found.mixed:
        notes.append("talking heads: scores are mixed across heads")
    if len(scores.products) > 1:
        count = len(scores.products)
        notes.append(f"{count} products are summed into the scores; the first is read")
    return tuple(notes)
