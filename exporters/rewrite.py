"""What attention operators are told of masks and lengths, put into an exported program."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

import torch
from torch import fx
from torch.export import ExportedProgram

from exporters.editor import Editor, Size
from exporters.patterns.scores import Replay
from surgery.anatomy.graph import op_name, shape_of

aten = torch.ops.aten


class Rewriter(Editor):
    """An editor that knows padding, masks to be added, and numbers of keys; what sites share is made once."""

    def __init__(self, program: ExportedProgram) -> None:
        super().__init__(program)
        self._masks: dict[object, fx.Node] = {}
        self._lengths: dict[object, tuple[fx.Node, fx.Node]] = {}

    def counted(self, tokens: fx.Node, length: Size) -> tuple[fx.Node, fx.Node]:
        """Where each row's last new key goes, and the padding mask's length; int32.

        The ``length`` new ones follow the tokens that the mask counts before them. Padding among them stands
        behind, where nobody looks, and the next tokens take its place.
        """

        def make() -> tuple[fx.Node, fx.Node]:
            total = self.node(aten.sym_size.int, tokens, 1)
            before = self.node(operator.sub, total, length)
            old = self.node(aten.slice.Tensor, tokens, 1, 0, before)
            count = self.node(aten.sum.dim_IntList, old, [1])
            last = self.node(aten.add.Tensor, count, self.node(operator.sub, length, 1))
            return self._int32(last), self._scalar(total)

        return self._first(tokens, make)

    def full_lengths(self, batch: Size, total: Size) -> tuple[fx.Node, fx.Node]:
        """The same where every row has ``total`` keys."""

        def make() -> tuple[fx.Node, fx.Node]:
            length = self._scalar(total)
            last = self.node(aten.sub.Tensor, length, 1)
            return self.node(aten.expand.default, last, [batch]), length

        key = tuple(str(n if isinstance(n, int) else n.meta["val"]) for n in (batch, total))
        return self._first(key, make)

    def padding(self, tokens: fx.Node | None) -> fx.Node | None:
        """The padding mask in the type that the operators take."""
        if tokens is None:
            return None

        def cast() -> fx.Node:
            return self._int32(tokens)

        return self.once(tokens, tokens, cast)

    def addend(self, mask: fx.Node | Replay | None, scores: Sequence[Size]) -> fx.Node | None:
        """A mask as something to add to the scores.

        Args:
            mask: A boolean one becomes 0 where it keeps, the lowest number elsewhere; a replay runs
                zeros through everything that happens to the scores.
            scores: Their shape, (batch, heads, length, length).
        """
        if mask is None:
            return None
        if isinstance(mask, Replay):
            return self._replay(mask, scores)
        return self._spread(self.once(mask, mask, lambda: self._as_addend(mask)), mask, scores)

    def once(self, key: object, mask: fx.Node, make: Callable[[], fx.Node]) -> fx.Node:
        """Make something of a mask right behind its node, or hand out what was made before: layers share masks."""
        if key not in self._masks:
            # Placeholders must stay together at the top of the graph.
            first = next(n for n in self.graph.nodes if n.op != "placeholder")
            with self.graph.inserting_before(first if mask.op == "placeholder" else mask.next):
                self._masks[key] = make()
        return self._masks[key]

    def _as_addend(self, mask: fx.Node) -> fx.Node:
        dtype = mask.meta["val"].dtype
        if dtype is torch.float32:
            return mask
        kept = self.node(aten._to_copy.default, mask, dtype=torch.float32)
        if dtype is not torch.bool:
            return kept
        hidden = self.node(aten.sub.Tensor, kept, 1)
        return self.node(aten.mul.Tensor, hidden, torch.finfo(torch.float32).max)

    def _spread(self, addend: fx.Node, mask: fx.Node, scores: Sequence[Size]) -> fx.Node:
        """The operators broadcast over batch and heads alone, and take four dimensions."""
        shape = shape_of(mask)
        for _ in range(4 - len(shape)):
            addend = self.node(aten.unsqueeze.default, addend, 0)
        if len(shape) > 1 and 1 not in shape[-2:]:
            return addend
        return self.node(aten.expand.default, addend, [-1, -1, *scores[2:]])

    def _replay(self, mask: Replay, scores: Sequence[Size]) -> fx.Node:
        product = mask.product
        sizes = scores[-len(shape_of(product)) :]
        if len(sizes) == 3:  # one head a row: (batch, length, length)
            sizes = [scores[0], *scores[2:]]
        copies = {product: self._zero_scores(product, sizes)}
        for node in mask.nodes:
            copies[node] = self.graph.node_copy(node, lambda n: copies.get(n) or self.current(n))
        last = copies[(product, *mask.nodes)[-1]]
        return last if len(sizes) == 4 else self.node(aten.reshape.default, last, list(scores))

    def _zero_scores(self, product: fx.Node, sizes: Sequence[Size]) -> fx.Node:
        """What a product of zeros gives: zeros, or what ``baddbmm`` adds to it."""
        if op_name(product) == "baddbmm":
            return self.node(aten.expand.default, product.args[0], list(sizes))
        return self.node(aten.full.default, list(sizes), 0.0)

    def _int32(self, x: fx.Node) -> fx.Node:
        return self.node(aten._to_copy.default, x, dtype=torch.int32)

    def _scalar(self, size: Size) -> fx.Node:
        return self.node(aten.scalar_tensor.default, size, dtype=torch.int32)

    def _first(
        self, key: object, make: Callable[[], tuple[fx.Node, fx.Node]]
    ) -> tuple[fx.Node, fx.Node]:
        """Make something here, or hand out what an earlier site has made: sites are written in order."""
        if key not in self._lengths:
            self._lengths[key] = make()
        return self._lengths[key]
