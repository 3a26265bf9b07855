"""The adapters that sit on one weight, each on its own output channels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from surgery.adapters.base import Adapter
from surgery.anatomy.types import Access, Layout, Rows
from surgery.operations.product import Span, is_plain, product
from surgery.operations.rows import Block, as_matrix, as_weight, assemble, blocks, take


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

    def place(self, slot: str, adapter: Adapter, rows: Rows) -> None:
        """Put ``adapter`` on ``rows`` under the name ``slot``."""
        self[slot] = adapter
        self._rows[slot] = rows
        self._blocks[slot] = blocks(rows, self.total)

    def adapters(self) -> Iterator[tuple[str, Adapter]]:
        """The adapters with their slots."""
        for slot, adapter in self.items():
            assert isinstance(adapter, Adapter)
            yield slot, adapter

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
        pairs = None if weight.requires_grad or is_plain() else self._factors()
        if pairs is None:
            return None
        return product(x, as_matrix(weight, self.layout), bias, *pairs)

    def _factors(self) -> tuple[list[tuple[Tensor, Tensor]], list[Span]] | None:
        """The factors with the runs of channels they lie on; interleaved ones are laid out first."""
        adapters = list(self.adapters())
        if not all(_is_linear(adapter) for _, adapter in adapters):
            return None
        factors = [adapter.factors() for _, adapter in adapters]
        if len({f.dtype for pair in factors for f in pair}) > 1:
            return None
        places = [self._blocks[slot] for slot, _ in adapters]
        if all(len(place) == place[0].count == 1 for place in places):
            return factors, [(block.start, block.length) for (block,) in places]
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

    def corrected(self, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """The original plus every correction, in the weight's layout; None if there is none.

        Summed in fp32, or in ``dtype`` where that is wider.
        """
        if self.original is None:
            return None
        wide = torch.promote_types(dtype, torch.float32)
        return self._plus_corrections(self.original.to(device=device, dtype=wide))

    def exact(self, live: Tensor) -> Tensor:
        """The sum that folding rounds: original + corrections + deltas, ``(out, in)``, float64.

        Args:
            live: The weight in the model; it is the original where no adapter corrects it.
        """
        base = live.detach() if self.original is None else self.original
        # Apple's accelerator has no float64.
        device = torch.device("cpu") if live.device.type == "mps" else live.device
        total = as_matrix(base.to(device, torch.float64, copy=True), self.layout)
        for slot, adapter in self.adapters():
            correction = adapter.correction()
            if correction is not None:
                c, d = (factor.detach().to(total) for factor in correction)
                self._add(total, slot, c @ d)
            self._add(total, slot, adapter.delta(torch.float64).to(total))
        return total

    def _add(self, total: Tensor, slot: str, part: Tensor) -> None:
        """Add to the rows of one adapter in place; the other rows keep their bits."""
        where = self._blocks[slot]
        for block, piece in zip(where, part.split([b.size for b in where]), strict=True):  # type: ignore[no-untyped-call]
            grid = total.view(block.count, block.period, -1)
            rows = grid.narrow(1, block.start, block.length)
            rows += piece.reshape(block.count, block.length, -1)

    def _plus_corrections(self, weight: Tensor) -> Tensor:
        parts: list[tuple[str, Tensor]] = []
        for slot, adapter in self.adapters():
            correction = adapter.correction()
            if correction is not None:
                c, d = (factor.to(weight) for factor in correction)
                parts.append((slot, c @ d))
        if not parts:
            return weight
        return weight + as_weight(self._spread(parts, 0), self.layout, weight.shape)

    def _spread(self, parts: list[tuple[str, Tensor]], dim: int) -> Tensor:
        return assemble([(self._blocks[slot], part) for slot, part in parts], self.total, dim)


def _is_linear(adapter: Adapter) -> bool:
    """Whether calling the adapter is the product with its factors, and nothing more."""
    hooked = adapter._forward_hooks or adapter._forward_pre_hooks or adapter._backward_hooks
    dropping = adapter.dropout and adapter.training
    return type(adapter).forward is Adapter.forward and not (
        dropping or hooked or adapter._backward_pre_hooks
    )
