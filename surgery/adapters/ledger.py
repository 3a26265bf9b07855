"""What was fused into a weight and subtracted from it, as low-rank factors."""

from __future__ import annotations

import torch
from torch import Tensor

from surgery.adapters.widths import KeepsType


class Ledger(KeepsType):
    """An append-only list of pairs; the weight at any time is round(original + their sum).

    Because every entry is kept, and keeps its type when the model is cast, the weight is rounded once however many
    entries there are, and the entries with the original weight rebuild it bit for bit.

    Args:
        in_features: Input channels of the projection.
        out_features: Output channels of the projection.
        capacity: Pairs that will ever be entered.
        device: Where the factors live.
        dtype: Type of the factors, float32 or wider.
    """

    B: Tensor
    A: Tensor
    count: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        capacity: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.register_buffer("B", torch.zeros(out_features, capacity, device=device, dtype=dtype))
        self.register_buffer("A", torch.zeros(capacity, in_features, device=device, dtype=dtype))
        self.register_buffer("count", torch.zeros((), device=device, dtype=torch.long))

    @property
    def entries(self) -> int:
        """Pairs entered. A GPU is waited for."""
        return int(self.count)

    def enter(self, b: Tensor, a: Tensor) -> None:
        """Append pairs, (out, k) and (k, in)."""
        entries = self.entries
        place = slice(entries, entries + a.shape[0])
        self.B[:, place] = b
        self.A[place] = a
        self.count += a.shape[0]

    def clear(self) -> None:
        """Forget every entry."""
        self.count.zero_()

    def factors(self) -> tuple[Tensor, Tensor]:
        """Everything entered, (out, k) and (k, in): their product is what the weight gained."""
        entries = self.entries
        return self.B[:, :entries], self.A[:entries]
