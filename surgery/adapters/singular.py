"""What adapters share whose factors start on singular directions of the weight."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from surgery.adapters.base import Adapter
from surgery.adapters.ledger import Ledger
from surgery.adapters.widths import uncast


class SingularStart(Adapter):
    """An adapter that takes a share of the pretrained weight over (PiSSA, arXiv 2404.02948).

    The ledger subtracts from the frozen weight what the factors start with, so the function starts
    unchanged. Weight decay or dropout on such factors would wear the pretrained weight away.
    """

    carries_base = True
    ledger: Ledger

    @abstractmethod
    def pairs(self) -> dict[str, tuple[nn.Parameter, int]]:
        """Each trained tensor by name, with the dimension along which its pairs lie."""

    @abstractmethod
    def directions(self, weight: Tensor, count: int) -> dict[str, Tensor]:
        """What the trained tensors are on the ``count`` leading singular directions of ``weight``."""

    @torch.no_grad()
    def start(self, weight: Tensor, generator: torch.Generator | None = None) -> None:
        """Take the leading singular directions over from the weight; nothing is random."""
        self.take(self.directions(weight.float(), self.rank))

    @torch.no_grad()
    def take(self, values: dict[str, Tensor]) -> None:
        """Set the trained tensors, and subtract them from the frozen weight."""
        for name, (parameter, _) in self.pairs().items():
            parameter.copy_(values[name])
        self.ledger.clear()
        self.enter(-1)

    @torch.no_grad()
    @uncast()
    def enter(self, sign: int, pairs: Tensor | slice = slice(None)) -> None:
        """Enter present pairs into the ledger: fused with +1, subtracted with -1."""
        b, a = self.factors()
        self.ledger.enter(sign * b[:, pairs], a[pairs])

    def correction(self) -> tuple[Tensor, Tensor] | None:
        """The ledger: everything fused, less everything subtracted, since the original weight."""
        return self.ledger.factors()

    @torch.no_grad()
    @uncast()
    def total(self) -> tuple[Tensor, Tensor]:
        """The whole change W - W0 as one LoRA, (out, k) and (k, in), at least float32."""
        b, a = self.factors()
        c, d = self.ledger.factors()
        return torch.cat([c, b.to(c)], dim=1), torch.cat([d, a.to(d)], dim=0)
