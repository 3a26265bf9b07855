"""LoRA with a frozen A: the honest half-size control."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from surgery.adapters.base import Adapter
from surgery.adapters.random import orthonormal
from surgery.adapters.registry import register


@register("frozen-a")
class FrozenA(Adapter):
    r"""LoRA that trains B alone (Zhu et al., "Asymmetry in Low-Rank Adapters", arXiv 2402.16842).

    .. math:: \Delta W = s\, B A, \qquad A A^T = I \text{ fixed}

    r out weights: half of LoRA's on a square projection, like SymLoRA.

    Args:
        **options: See :class:`Adapter`.
    """

    A: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> None:
        super().__init__(in_features, out_features, **options)
        self.register_buffer("A", torch.empty(self.rank, in_features, device=device, dtype=dtype))
        self.B = nn.Parameter(torch.empty(out_features, self.rank, device=device, dtype=dtype))

    @torch.no_grad()
    def start(self, weight: Tensor, generator: torch.Generator | None = None) -> None:
        """B = 0, A with random orthonormal rows; the weight is not looked at."""
        self.A.copy_(orthonormal(self.in_features, self.rank, generator).T)
        self.B.zero_()

    def factors(self) -> tuple[Tensor, Tensor]:
        """(s B, A)."""
        return self.scaled(self.B), self.A.to(self.B.dtype)  # FSDP2 may cast parameters alone
