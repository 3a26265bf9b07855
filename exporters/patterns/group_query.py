"""``com.microsoft::GroupQueryAttention``: a causal decoder's attention, with its cache and its rotary embeddings."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from exporters.inputs import Inputs
from exporters.patterns.attention import SCORES, unseen_by, unusable
from exporters.patterns.base import LOWEST, Refusal
from exporters.patterns.cache import Remembered, remembered, shared_heads
from exporters.patterns.group_query_match import GroupQueryMatch
from exporters.patterns.heads import trace_result
from exporters.patterns.masks import MaskReading, read_mask
from exporters.patterns.operands import Operand, flat_operand
from exporters.patterns.packed import pack
from exporters.patterns.rotary import Rotary, trace_rotary
from exporters.patterns.scores import Replay, Scores
from exporters.patterns.unseen import Unseen
from surgery.anatomy.attention import Core
from surgery.anatomy.graph import Graph, shape_of

_HEAD, _ROTARY = 8, 16


@dataclass(frozen=True)
class GroupQueryPattern:
    """Causal attention with a cache, a soft cap or rotary embeddings, which no other operator has.

    Attributes:
        positions: How many positions rotary tables must cover; None leaves rotary embeddings outside.
        counted: See :class:`GroupQueryMatch`. Else padding goes in as a bias, and may be anywhere.
    """

    positions: int | None = None
    counted: bool = False

    def match(self, core: Core, graph: Graph, inputs: Inputs) -> GroupQueryMatch | Refusal:
        """Match what lies between the operands and the result, or say what is in the way."""
        scores = SCORES[core.kind].match(core, graph)
        if isinstance(scores, Refusal):
            return scores
        if len(shape_of(scores.query)) != 4 or scores.factors:
            return Refusal("the scores are no plain (batch, heads, length, length)")
        if (size := shape_of(scores.query)[-1]) % _HEAD:
            return Refusal(f"the heads have size {size}, not a multiple of {_HEAD}")
        key = shared_heads(scores.key, scores.key_transposed, shape_of(scores.query)[1], graph)
        value = shared_heads(scores.value, False, shape_of(scores.query)[1], graph)
        if key is None or value is None:
            return Refusal("key or value is no plain arrangement of its heads")
        if shape_of(key)[1] != shape_of(value)[1] or shape_of(key)[3] != shape_of(value)[3]:
            return Refusal(f"key {shape_of(key)} and value {shape_of(value)} differ")
        cache = self._cache(key, value, graph)
        if cache is not None:
            key, value = (part.new for part in cache)
        rotary = self._rotary(scores.query, key, graph, inputs)
        if cache is None and rotary is None and not scores.softcap:
            why = "neither a cache nor a soft cap nor a rotation"
            return Refusal(f"{why}: other operators do as well")
        if cache is None and _length(scores.query) != _length(key):
            return Refusal("queries and keys differ in number, and there is no cache")
        mask = self._mask(scores, cache is not None, graph, inputs)
        if isinstance(mask, Refusal):
            return mask
        return self._build(scores, key, value, cache, mask, rotary, graph)

    def _build(
        self,
        scores: Scores,
        key: fx.Node,
        value: fx.Node,
        cache: tuple[Remembered, Remembered] | None,
        mask: MaskReading,
        rotary: tuple[Rotary, Rotary] | None,
        graph: Graph,
    ) -> GroupQueryMatch:
        query = scores.query
        if rotary is not None:
            query, key = (part.x for part in rotary)
        operands = [Operand(n, flat_operand(n, False, graph)) for n in (query, key, value)]
        hidden = None if cache is not None else _hidden(scores, mask, graph)
        packed = pack((query, key, value), graph)
        gathered = trace_result(scores.result, graph)
        return GroupQueryMatch(
            operands[0],
            operands[1],
            operands[2],
            cache,
            None if isinstance(gathered, Refusal) else gathered,
            scores.result,
            scores,
            mask,
            hidden,
            None if rotary is None else rotary[0].tables,
            None if isinstance(packed, Refusal) else packed,
            self.counted and mask.padding is not None,
        )

    def _cache(
        self, key: fx.Node, value: fx.Node, graph: Graph
    ) -> tuple[Remembered, Remembered] | None:
        found = [remembered(node, graph) for node in (key, value)]
        keys, values = found
        return None if keys is None or values is None else (keys, values)

    def _mask(
        self, scores: Scores, cached: bool, graph: Graph, inputs: Inputs
    ) -> MaskReading | Refusal:
        """What is hidden, if that includes all that comes later."""
        if scores.causal and not cached and scores.mask is None:
            return MaskReading(causal=True)
        if scores.mask is None or isinstance(scores.mask, Replay):
            return Refusal("the mask is no single node")
        if refusal := unusable(MaskReading(bias=scores.mask), scores):
            return refusal
        mask = read_mask(scores.mask, graph, inputs, decoder=True)
        if not mask.causal:
            return Refusal("the mask does more than to hide padding and what comes later")
        return mask

    def _rotary(
        self, query: fx.Node, key: fx.Node, graph: Graph, inputs: Inputs
    ) -> tuple[Rotary, Rotary] | None:
        """How both are rotated, if they are rotated alike and the operator takes it."""
        if self.positions is None:
            return None
        found = [
            trace_rotary(n, graph, inputs, self.positions, counted=self.counted)
            for n in (query, key)
        ]
        first, second = found
        if isinstance(first, Refusal) or isinstance(second, Refusal):
            return None
        taken = shape_of(query)[-1] % _ROTARY == 0 == 2 * first.tables.cos.shape[-1] % _ROTARY
        return (first, second) if taken and first.tables.same(second.tables) else None


def _hidden(scores: Scores, mask: MaskReading, graph: Graph) -> Unseen | None:
    """The mask, if a query may see nothing under it."""
    if mask.finite and mask.padding is not None and isinstance(scores.mask, fx.Node):
        return Unseen(scores.mask, below=LOWEST)
    return unseen_by(scores, mask, graph)


def _length(node: fx.Node) -> str:
    """A dynamic length as its symbol."""
    return str(node.meta["val"].shape[2])
