"""The adapters that sit on one weight, each on its own output channels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from surgery.adapters.base import Adapter
from surgery.adapters.widths import exact_product, uncast
from surgery.anatomy.types import Access, Layout, Rows
from surgery.operations.pairs import Span
from surgery.operations.product import is_plain, product
from surgery.operations.rows import (
    Block,
    as_matrix,
    as_weight,
    assemble,
    blocks,
    rest_of,
    take,
)
from surgery.operations.sums import Squares, add_rounded, product_square

Costs = dict[str, tuple[Squares, float]]
"""For each slot the squared norms of its folded rows, and that of its update."""


class Graft(nn.ModuleDict):
    """Adapters by slot (``query``, ``value``, ...) on one weight of ``total`` output channels.

    Attributes:
        layout: Where the weight keeps its output channels.
        access: Whether the adapters add to the owner's output, or to the weight that all read.
        total: Output channels of the whole weight.
        original: The weight before the operation, on the CPU, if an adapter corrects the weight;
            no buffer, so it neither moves with the model nor appears in its state dict.
    """

    def __init__(self, layout: Layout, access: Access, total: int) -> None:
        super().__init__()
        self.layout, self.access, self.total = layout, access, total
        self.original: Tensor | None = None
        self._rows: dict[str, Rows] = {}
        self._blocks: dict[str, tuple[Block, ...]] = {}
        self._spans: list[Span] | None = []

    def place(self, slot: str, adapter: Adapter, rows: Rows) -> None:
        """Put ``adapter`` on ``rows`` under the name ``slot``."""
        self[slot] = adapter
        self._rows[slot] = rows
        self._blocks[slot] = blocks(rows, self.total)
        self._spans = _spans([self._blocks[name] for name in self])

    def adapters(self) -> Iterator[tuple[str, Adapter]]:
        """The adapters with their slots."""
        for slot, adapter in self.items():
            assert isinstance(adapter, Adapter)
            yield slot, adapter

    @uncast()
    def read_base(self, weight: Tensor) -> None:
        """Let the adapters recompute what hangs on the original ``weight``, which is a new one."""
        matrix = as_matrix(weight, self.layout)
        for slot, adapter in self.adapters():
            adapter.read_base(take(matrix, self._rows[slot]).float())

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        """The whole output of a linear owner, adapters included, as one node of autograd's graph.

        Args:
            x: Input of the module, ``(..., in)``.
            weight: Its base weight.
            bias: Its bias, if it has one.

        Returns:
            ``(..., total)``; None where the parts have to be seen: adapters with a forward, dropout or
            hooks of their own, a weight that trains, a tracer.
        """
        casts = torch.is_autocast_enabled(x.device.type)
        pairs = None if weight.requires_grad or is_plain() else self._factors(casts)
        if pairs is None:
            return None
        return product(x, as_matrix(weight, self.layout), bias, *pairs)

    def _factors(self, casts: bool) -> tuple[list[tuple[Tensor, Tensor]], list[Span]] | None:
        """The factors with the runs of channels they lie on; interleaved ones are laid out first.

        They have one dtype, or autocast ``casts`` them to one (it computes one of the polar form's two).
        """
        adapters = dict(self.adapters())
        if not all(map(_is_linear, adapters.values())):
            return None
        factors = [adapter.factors() for adapter in adapters.values()]
        if not casts and len({f.dtype for pair in factors for f in pair}) > 1:
            return None
        if self._spans is not None:
            return factors, self._spans
        places = [self._blocks[slot] for slot in adapters]
        b = [assemble([(p, b)], self.total, 0) for p, (b, _) in zip(places, factors, strict=True)]
        return [(torch.cat(b, 1), torch.cat([a for _, a in factors]))], [(0, self.total)]

    def output_delta(self, x: Tensor, owner: nn.Module) -> Tensor:
        """What the adapters add to the output of ``owner``, the module of the weight.

        Args:
            x: Input of the module: ``(..., in)``, for a convolution ``(..., in, *spatial)``.
            owner: The module; a convolution's stride is taken from it.

        Returns:
            ``(..., total)``, for a convolution ``(..., total, *strided spatial)``, dtype of ``x``.
        """
        if self.layout is not Layout.CONV:
            return self._spread([(slot, adapter(x)) for slot, adapter in self.items()], -1)
        stride: Any = owner.stride
        every: list[Any] = [slice(None, None, step) for step in stride]
        last = x[(..., *every)].movedim(-len(stride) - 1, -1)
        delta = self._spread([(slot, adapter(last)) for slot, adapter in self.items()], -1)
        return delta.movedim(-1, -len(stride) - 1)

    def composed(self, weight: Tensor) -> Tensor:
        """``weight`` plus the deltas, rounded once to its dtype. Differentiable in the factors."""
        with torch.autocast(weight.device.type, enabled=False):
            factors = [(slot, adapter.factors()) for slot, adapter in self.adapters()]
            delta = self._spread([(slot, b @ a) for slot, (b, a) in factors], 0)
            return (weight + as_weight(delta, self.layout, weight.shape)).to(weight.dtype)

    @uncast()
    def corrected(self, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """The original plus every correction, in the weight's layout; None if there is none.

        Summed in fp32, or in ``dtype`` where that is wider.
        """
        if self.original is None:
            return None
        wide = torch.promote_types(dtype, torch.float32)
        return self._plus_corrections(self.original.to(device=device, dtype=wide))

    @uncast()
    def fold_into(self, live: Tensor, before_writing: Callable[[Tensor], object]) -> Costs:
        """Write round(original + corrections + deltas), summed in float64, into ``live``.

        Args:
            live: The weight in the model; it is the original where no adapter corrects it.
            before_writing: Called with every view of ``live`` that is about to be written to.
        """
        live = live.detach()
        base = live if self.original is None else self.original.to(live.device)
        # Apple's accelerator has no float64.
        base = as_matrix(base.cpu() if base.device.type == "mps" else base, self.layout)
        target = as_matrix(live, self.layout)
        costs: Costs = {}
        for slot, adapter in self.adapters():
            left, right = _update(adapter, base)
            squares = Squares()
            where = self._blocks[slot]
            parts = torch.split(left, [block.size for block in where])
            for block, part in zip(where, parts, strict=True):
                into, own = _runs_of(target, block), _runs_of(base, block)
                squares += _add_rounded(into, own, part, right, before_writing)
            costs[slot] = squares, product_square(left, right)
        if self.original is not None:  # correcting may have turned -0.0 into 0.0 in the other rows
            for into, value in zip(self.others(target), self.others(base), strict=True):
                before_writing(into)
                into.copy_(value)
        return costs

    def others(self, matrix: Tensor) -> list[Tensor]:
        """Views of the rows of an (out, in) matrix that have no adapter."""
        rest = rest_of(tuple(run for rows in self._rows.values() for run in rows), self.total)
        return [matrix[start:stop] for start, stop, _ in rest]

    def _plus_corrections(self, weight: Tensor) -> Tensor:
        parts: list[tuple[str, Tensor]] = []
        for slot, adapter in self.adapters():
            correction = adapter.correction()
            if correction is not None:
                c, d = (factor.to(weight) for factor in correction)
                parts.append((slot, exact_product(c, d)))
        if not parts:
            return weight
        return weight + as_weight(self._spread(parts, 0), self.layout, weight.shape)

    def _spread(self, parts: list[tuple[str, Tensor]], dim: int) -> Tensor:
        return assemble([(self._blocks[slot], part) for slot, part in parts], self.total, dim)


def _add_rounded(
    into: Tensor,
    base: Tensor,
    left: Tensor,
    right: Tensor,
    before_writing: Callable[[Tensor], object],
) -> Squares:
    """Where ``base`` is, which may be another device than that of ``into``."""
    if into.device == base.device:
        return add_rounded(into, base, left, right, before_writing)
    value = torch.empty_like(base)
    squares = add_rounded(value, base, left, right)
    before_writing(into)
    into.copy_(value)
    return squares


def _runs_of(matrix: Tensor, block: Block) -> Tensor:
    """The channels of a block as a view, (count, length, in)."""
    return matrix.view(block.count, block.period, -1).narrow(1, block.start, block.length)


def _spans(places: list[tuple[Block, ...]]) -> list[Span] | None:
    """The run of channels of each slot; None if one has several."""
    if all(len(place) == place[0].count == 1 for place in places):
        return [(block.start, block.length) for (block,) in places]
    return None


def _update(adapter: Adapter, like: Tensor) -> tuple[Tensor, Tensor]:
    """Correction and delta as one pair of factors, (out, k) and (k, in), float64."""
    pairs = [adapter.factors(), adapter.correction()]
    left, right = zip(*(pair for pair in pairs if pair is not None), strict=True)
    wide = {"device": like.device, "dtype": torch.float64}
    return (
        torch.cat([b.detach().to(**wide) for b in left], 1),
        torch.cat([a.detach().to(**wide) for a in right]),
    )


def _is_linear(adapter: Adapter) -> bool:
    """Whether calling the adapter is the product with its factors, and nothing more."""
    hooked = adapter._forward_hooks or adapter._forward_pre_hooks or adapter._backward_hooks
    dropping = adapter.dropout and adapter.training
    return type(adapter).forward is Adapter.forward and not (
        dropping or hooked or adapter._backward_pre_hooks
    )
