"""``com.microsoft::Attention``: projection, heads, scores, softmax and joining in one operator."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from exporters.inputs import Inputs
from exporters.patterns.base import Refusal
from exporters.patterns.heads import Gathered, Heads, trace_heads, trace_result
from exporters.patterns.masks import MaskReading, read_mask
from exporters.patterns.scores import Scores, ScoresPattern
from exporters.patterns.sdpa import ScaledDotProduct
from exporters.patterns.softmax import SoftmaxBetweenProducts
from surgery.anatomy.attention import Core
from surgery.anatomy.graph import Graph, op_name, shape_of

_PATTERNS: tuple[ScoresPattern, ...] = (ScaledDotProduct(), SoftmaxBetweenProducts())
SCORES = {pattern.kind: pattern for pattern in _PATTERNS}


@dataclass(frozen=True, eq=False)
class AttentionMatch:
    """A whole attention site that one operator computes.

    Attributes:
        x: The one input of query, key and value, (batch, length, in).
        gathered: The node to replace.
        weight: (in, query + key + value), as the operator wants it.
        bias: (query + key + value,), or None.
        heads: Number of heads.
        sizes: Output features of query, key and value.
        scale: Factor of the scores.
        mask: What is hidden.
    """

    x: fx.Node
    gathered: Gathered
    weight: Tensor
    bias: Tensor | None
    heads: int
    sizes: tuple[int, int, int]
    scale: float
    mask: MaskReading


class AttentionPattern:
    """Self-attention straight from linear projections of one input."""

    operator = ("com.microsoft", "Attention")

    def match(self, core: Core, graph: Graph, inputs: Inputs) -> AttentionMatch | Refusal:
        """Match the whole region node by node, or say what is in the way."""
        scores = SCORES[core.kind].match(core, graph)
        if isinstance(scores, Refusal):
            return scores
        gathered = trace_result(scores.result, graph)
        if isinstance(gathered, Refusal):
            return gathered
        heads = self._heads(scores, graph)
        if isinstance(heads, Refusal):
            return heads
        x = self._input(heads, scores)
        if isinstance(x, Refusal):
            return x
        mask = read_mask(scores.mask, graph, inputs)
        problem = _unusable(mask, scores)
        return problem or self._build(x, gathered, heads, scores, mask)

    def _heads(self, scores: Scores, graph: Graph) -> tuple[Heads, Heads, Heads] | Refusal:
        query = trace_heads("query", scores.query, graph, transposed=False)
        key = trace_heads("key", scores.key, graph, transposed=scores.key_transposed)
        value = trace_heads("value", scores.value, graph, transposed=False)
        for found in (query, key, value):
            if isinstance(found, Refusal):
                return found
        assert isinstance(query, Heads) and isinstance(key, Heads) and isinstance(value, Heads)
        if not query.heads == key.heads == value.heads:
            return Refusal(f"{query.heads} query heads share {key.heads} key heads")
        return query, key, value

    def _input(self, heads: tuple[Heads, Heads, Heads], scores: Scores) -> fx.Node | Refusal:
        """The one (batch, length, in) tensor that all three project."""
        query, key, value = heads
        if not query.x is key.x is value.x:
            return Refusal(
                "query, key and value are projected from different inputs (cross attention)"
            )
        region = frozenset[fx.Node]().union(*(h.region for h in heads))
        users = {user for node in region.union(h.linear for h in heads) for user in node.users}
        if outside := users - region - {scores.product, scores.result}:
            return Refusal(
                f"a projection is read outside the attention too, by {outside.pop().name}"
            )
        batch, _, length, _ = shape_of(scores.query)
        source = query.x.args[0] if op_name(query.x) in {"view", "reshape"} else query.x
        for x in (query.x, source):
            if isinstance(x, fx.Node) and shape_of(x)[:-1] == (batch, length):
                return x
        return Refusal(f"the input has shape {shape_of(query.x)}, not (batch, length, features)")

    def _build(
        self,
        x: fx.Node,
        gathered: Gathered,
        heads: tuple[Heads, Heads, Heads],
        scores: Scores,
        mask: MaskReading,
    ) -> AttentionMatch:
        bias = torch.cat([h.bias for h in heads])
        query, key, value = (len(h.bias) for h in heads)
        return AttentionMatch(
            x,
            gathered,
            torch.cat([h.weight for h in heads]).T.contiguous(),
            bias if bias.any() else None,
            heads[0].heads,
            (query, key, value),
            scores.scale,
            MaskReading(mask.causal or scores.causal, mask.padding, mask.bias),
        )


def _unusable(mask: MaskReading, scores: Scores) -> Refusal | None:
    """The operator adds a bias of shape (1 or batch, 1 or heads, length, length)."""
    if not isinstance(mask.bias, fx.Node):
        return None
    shape = shape_of(mask.bias)
    batch, heads, length, _ = shape_of(scores.query)
    fits = len(shape) == 4 and shape[0] in (1, batch) and shape[1] in (1, heads)
    if fits and shape[2:] == (length, length):
        return None
    return Refusal(f"the mask has shape {shape}, not (batch, heads, {length}, {length})")
