"""LoRA: Low-Rank Adaptation."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from surgery.adapters.base import Adapter
from surgery.adapters.registry import register
from surgery.errors import PlanError


@register("lora")
class LoRA(Adapter):
    r"""LoRA (Hu et al., arXiv 2106.09685).

    .. math:: \Delta W = s\, B A, \qquad s = \alpha / r

    B starts at zero, A at random, so the function starts unchanged. r (in + out) weights.

    Args:
        init: ``"kaiming"`` for uniform with a = sqrt(5), the authors' code; ``"gaussian"`` for
            N(0, 1/r), their paper.
        **options: See :class:`Adapter`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        init: Literal["kaiming", "gaussian"] = "kaiming",
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> None:
        super().__init__(in_features, out_features, **options)
        if init not in ("kaiming", "gaussian"):
            raise PlanError(
                f"unknown start {init!r} of LoRA's A", remedy="set init: kaiming or gaussian"
            )
        self.init = init
        self.A = nn.Parameter(torch.empty(self.rank, in_features, device=device, dtype=dtype))
        self.B = nn.Parameter(torch.empty(out_features, self.rank, device=device, dtype=dtype))

    @torch.no_grad()
    def start(self, weight: Tensor, generator: torch.Generator | None = None) -> None:
        """B = 0, A random; the weight is not looked at."""
        # Where the generator is.
        a = torch.empty(self.rank, self.in_features, device="cpu", dtype=torch.float32)
        if self.init == "kaiming":
            nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
        else:
            nn.init.normal_(a, std=1 / math.sqrt(self.rank), generator=generator)
        self.A.copy_(a)
        self.B.zero_()

    def factors(self) -> tuple[Tensor, Tensor]:
        """(s B, A)."""
        return self.scaled(self.B), self.A
