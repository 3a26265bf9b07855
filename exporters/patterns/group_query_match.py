"""Putting ``com.microsoft::GroupQueryAttention`` in the place of a causal decoder's attention."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import fx

from exporters.editor import Size
from exporters.patterns.cache import Remembered
from exporters.patterns.heads import Gathered
from exporters.patterns.masks import MaskReading
from exporters.patterns.operands import Operand, with_heads
from exporters.patterns.packed import Packed
from exporters.patterns.rotary import Tables
from exporters.patterns.scores import Replay, Scores
from exporters.patterns.unseen import Unseen
from exporters.rewrite import Rewriter
from surgery.anatomy.graph import shape_of

OPERATOR = ("com.microsoft", "GroupQueryAttention")


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
        counted: Whether the number of a row's earlier tokens is all that the operator gets to know of
            padding; it then keeps them at the front, padding behind.
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
            return rewriter.counted(self.mask.padding, length)
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
