"""Controls of SRLoRA: one thing of it taken away or turned round. They exist for the study alone."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import surgery
from surgery.adapters.registry import names, register
from surgery.adapters.srlora import SRLoRA
from surgery.training import Recomposition


class RandomPairs(SRLoRA):
    """SRLoRA that fuses pairs drawn at random."""

    def scores(self) -> Tensor:
        """Noise, (r,)."""
        return torch.rand(self.rank, device=self.ledger.B.device)


class StrongestPairs(SRLoRA):
    """SRLoRA that fuses the most important pairs."""

    def scores(self) -> Tensor:
        """The importance with its sign turned, (r,)."""
        return -super().scores()


class ReLoRA(SRLoRA):
    """LoRA that is fused and started anew, at the times at which SRLoRA recomposes (after arXiv 2307.05695)."""

    def directions(self, weight: Tensor, count: int) -> dict[str, Tensor]:
        """A at random as LoRA starts it, B at zero: no direction of the weight is taken over."""
        a = torch.empty(count, self.in_features, device=weight.device)
        torch.nn.init.kaiming_uniform_(a, a=math.sqrt(5))
        return {"A": a, "B": torch.zeros(self.out_features, count, device=weight.device)}


class KeepingState(surgery.Recomposer):
    """A recomposer that leaves the optimizer the state of swapped pairs, which belongs to others now."""

    def step(self) -> Recomposition | None:
        """As the original; the moments of every pair stay."""
        held = [state for state in self._optimizer.state.values() if "exp_avg" in state]
        before: list[dict[str, Any]] = [
            {key: state[key].clone() for key in ("exp_avg", "exp_avg_sq")} for state in held
        ]
        report = super().step()
        if report is not None:
            for state, old in zip(held, before, strict=True):
                for key, value in old.items():
                    state[key].copy_(value)
        return report


KINDS = {"srlora-random": RandomPairs, "srlora-strongest": StrongestPairs, "relora": ReLoRA}


def register_kinds() -> None:
    """Make the controls known by name, in this process, once."""
    for kind, control in KINDS.items():
        if kind not in names():
            register(kind)(control)
