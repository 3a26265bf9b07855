"""The pairs of factors on one weight: cast, laid out for the products, merged, and their gradients told apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Span = tuple[int, int]
"""First output channel and number of channels of one pair of factors."""


@dataclass(frozen=True)
class Order:
    """Where the factors lie, their dtype in products, and which products are made.

    ``as_one``: pairs on several spans are laid into one pair on all channels, zero where a pair does not
    lie. That is more arithmetic and fewer launches. ``forward``, ``backward``: whether each way goes
    through the merged weight.
    """

    spans: tuple[Span, ...]
    dtype: torch.dtype
    as_one: bool
    forward: bool
    backward: bool

    def rows(self, matrix: Tensor, dim: int) -> Iterator[Tensor]:
        """The channels of each B of ``bs``, as views: each made when its turn comes, for all are written to."""
        if self.as_one or self.spans == ((0, matrix.shape[dim]),):
            return iter((matrix,))
        return (matrix.narrow(dim, start, length) for start, length in self.spans)

    def a(self, factors: Sequence[Tensor]) -> Tensor:
        """The A of all pairs, (sum of r, in): one product with x serves them all."""
        every = factors[1::2]
        return cast(every[0] if len(every) == 1 else torch.cat(list(every)), self.dtype)

    def bs(self, factors: Sequence[Tensor], out: int) -> list[Tensor]:
        """The B that u is multiplied by, each on its columns of u: one per pair, or all as one."""
        if not self.as_one:
            return [cast(b, self.dtype) for b in factors[::2]]
        whole = factors[0].new_zeros(out, sum(map(len, factors[1::2])), dtype=self.dtype)
        for place, b in zip(self._places(whole, factors), factors[::2], strict=True):
            place.copy_(b)
        return [whole]

    def apart(self, grads: Sequence[Tensor], factors: Sequence[Tensor]) -> list[Tensor]:
        """The gradients of ``bs`` as those of each pair's B."""
        own = self._places(grads[0], factors) if self.as_one else grads
        return [cast(grad, b.dtype) for grad, b in zip(own, factors[::2], strict=True)]

    def merged(self, weight: Tensor, factors: Sequence[Tensor]) -> Tensor:
        """W + B A, (out, in), rounded once to the dtype of ``weight``."""
        factors, wide = [factor.to(self.dtype) for factor in factors], self.dtype
        if self.spans == ((0, weight.shape[0]),) and wide == weight.dtype:
            return torch.addmm(weight, *factors)
        merged = weight.clone()
        for (start, length), b, a in zip(self.spans, factors[::2], factors[1::2], strict=True):
            rows = merged.narrow(0, start, length)
            if wide == rows.dtype:
                rows.addmm_(b, a)
            else:
                rows.copy_(torch.addmm(rows.to(wide), b, a))
        return merged

    def _places(self, whole: Tensor, factors: Sequence[Tensor]) -> Iterator[Tensor]:
        """Where each B lies in one for all, as views."""
        first = 0
        for (start, length), a in zip(self.spans, factors[1::2], strict=True):
            yield whole.narrow(0, start, length).narrow(1, first, len(a))
            first += len(a)


def cast(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """Contiguous and in ``dtype``, by one copy at most."""
    if matrix.dtype == dtype:
        return matrix.contiguous()
    return matrix.to(dtype, memory_format=torch.contiguous_format)
