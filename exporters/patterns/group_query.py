"""``com.microsoft::GroupQueryAttention``: a causal decoder's attention, with its cache and its rotary embeddings."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import fx

from exporters.inputs import Inputs
from exporters.patterns.attention import SCORES, unseen_by, unusable
from exporters.patterns.base import LOWEST, Refusal
from exporters.patterns.cache import Remembered, remembered, shared_heads
from exporters.patterns.heads import Gathered, trace_result
from exporters.patterns.masks import MaskReading, read_mask
from exporters.patterns.operands import Operand, flat_operand, with_heads
from exporters.patterns.packed import Packed, pack
from exporters.patterns.rotary import Rotary, Tables, trace_rotary
from exporters.patterns.scores import Replay, Scores
from exporters.patterns.unseen import Unseen
from exporters.rewrite import Rewriter, Size
from surgery.anatomy.attention import Core
from surgery.anatomy.graph import Graph, shape_of

OPERATOR = ("com.microsoft", "GroupQueryAttention")
_HEAD, _ROTARY = 8, 16


@dataclass(frozen=True, eq=False)
class GroupQueryMatch:
    """A causal attention, its key heads shared by groups of query heads.

    Attributes:
        query, key, value: The new tokens' operands, not yet rotated if ``tables`` are given.
        cache: Past keys and values; None if the graph has no cache.
        gathered: Where the heads are side by side again; None if the graph never joins them.
        result: The attended values, (batch, heads, length, size).
        scores: Scale, soft cap and mask, as the graph has them.
        mask: What the mask says.
        unseen: Under what a query may see nothing; with a cache nobody asks what stands at padding.
        tables: What the operator rotates query and key by.
        packed: The one product of which the operator takes all three operands, if there is one.
        counted: Whether the number of a row's tokens is all that the operator gets to know of padding;
            it then keeps them at the front, padding behind.
    """

    query: Operand
    key: Operand
    value: Operand
    cache: tuple[Remembered, Remembered] | None
    gathered: Gathered | None
    result: fx.Node
    scores: Scores
    mask: MaskReading
    unseen: Unseen | None
    tables: Tables | None
    packed: Packed | None
    counted: bool

    operator = OPERATOR

    def write(self, rewriter: Rewriter, module: str) -> None:
        """Put the operator in place, and its keys and values in place of the joined ones."""
        target = self.result if self.gathered is None else self.gathered.node
        heads, size = shape_of(self.query.node)[1], shape_of(self.query.node)[3]
        with rewriter.before(target):
            batch, length = rewriter.sizes(self.query.node, 0, 2)
            last, total = self._lengths(rewriter, batch, length)
            inputs = self._operands(rewriter, module)
            past = [None, None] if self.cache is None else [part.past for part in self.cache]
            cos, sin = self._tables(rewriter)
            bias = None if self.counted else rewriter.addend(self._bias(), ())
            given = [*inputs, *past, last, total, cos, sin, None, bias]
            shapes = [(batch, length, heads * size), *self._present(rewriter, batch, length)]
            made = rewriter.fused_all(self.operator, given, self._attributes(), shapes)
            joined = made[0]
            if self.unseen is not None:
                values = self._values(inputs, rewriter)
                joined = self.unseen.mend(joined, values, self._heads, size, rewriter)
            result = with_heads(joined, self.gathered, self.result, heads, rewriter)
        if self.cache is not None:
            for part, present in zip(self.cache, made[1:], strict=True):
                rewriter.return_instead(part.joined, present)
        rewriter.replace(target, result)

    @property
    def _heads(self) -> tuple[int, int]:
        """How many query heads, and how many key heads."""
        return shape_of(self.query.node)[1], shape_of(self.key.node)[1]

    @property
    def products(self) -> int:
        """How many matrix products of the graph became one."""
        return 0 if self.packed is None else self.packed.products

    def _operands(self, rewriter: Rewriter, module: str) -> list[fx.Node | None]:
        """The packed ones in place of the query alone, or the three as they are."""
        if self.packed is not None:
            return [self.packed.write(rewriter, module), None, None]
        return [operand.joined(rewriter) for operand in (self.query, self.key, self.value)]

    def _values(self, operands: list[fx.Node | None], rewriter: Rewriter) -> fx.Node:
        """The values, (batch, length, key heads * size): what is last in a packed product."""
        packed, _, values = operands
        width = self._heads[1] * shape_of(self.value.node)[3]
        return values or rewriter.node(torch.ops.aten.slice.Tensor, packed, 2, -width)

    def _attributes(self) -> dict[str, int | float]:
        found: dict[str, int | float] = {
            "num_heads": self._heads[0],
            "kv_num_heads": self._heads[1],
            "scale": self.scores.scale,
        }
        if self.scores.softcap:
            found["softcap"] = self.scores.softcap
        if self.mask.window is not None:
            found["local_window_size"] = self.mask.window
        if self.tables is not None:
            found |= {"do_rotary": 1, "rotary_interleaved": int(self.tables.interleaved)}
        return found

    def _lengths(self, rewriter: Rewriter, batch: Size, length: Size) -> tuple[fx.Node, fx.Node]:
        """Index of the last key of each row, and the number of keys."""
        if self.counted:
            assert self.mask.padding is not None
            return rewriter.counted(self.mask.padding)
        mask = self._bias()
        total = length if mask is None else rewriter.sizes(mask, -1)[0]
        return rewriter.full_lengths(batch, total)

    def _bias(self) -> fx.Node | None:
        """The mask itself, unless it says no more than the operator does by itself."""
        mask = self.scores.mask
        assert not isinstance(mask, Replay)
        says_more = self.mask.padding is not None or self.cache is not None
        return mask if says_more else None

    def _tables(self, rewriter: Rewriter) -> tuple[fx.Node | None, fx.Node | None]:
        if self.tables is None:
            return None, None
        cos = rewriter.constant("rotary.cos", self.tables.cos)
        return cos, rewriter.constant("rotary.sin", self.tables.sin)

    def _present(self, rewriter: Rewriter, batch: Size, length: Size) -> list[list[Size]]:
        """Shapes of all keys and values: ONNX Runtime 1.22 wants both, read or not."""
        heads, size = shape_of(self.key.node)[1], shape_of(self.key.node)[3]
        if self.cache is None:
            return [[batch, heads, length, size]] * 2
        shapes = []
        for part in self.cache:
            (past,) = rewriter.sizes(part.past, 2)
            shapes.append([batch, heads, rewriter.node(operator.add, past, length), size])
        return shapes


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
