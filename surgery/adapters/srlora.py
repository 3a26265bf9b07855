"""SRLoRA: LoRA whose weakest pairs are fused into the base and re-born along unused directions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from surgery.adapters import svd
from surgery.adapters.base import Adapter
from surgery.adapters.importance import Importance
from surgery.adapters.registry import register
from surgery.errors import PlanError


@register("srlora")
class SRLoRA(Adapter):
    r"""SRLoRA (Yang, Wang, Hossain, arXiv 2505.12433).

    .. math::
        W = W_0 + \mathrm{ledger} + s B A, \qquad
        B = U_{:r} (S_{:r}/s)^{1/2}, \; A = (S_{:r}/s)^{1/2} V_{:r}^T \text{ at the start}

    The trained factors start on the r leading singular directions of W0 = U S V^T (PiSSA), which
    the ledger subtracts, so the function starts unchanged. At a recomposition the r' = gamma r
    pairs of lowest importance are fused (added to the ledger) and re-born on the next r'
    unused directions (subtracted in the ledger): the function does not change, the subspace does.

    The ledger keeps every fused and every subtracted pair, at most 2 target_rank - r of them. So the frozen weight
    is rounded once from the original at any time, and the whole update is a LoRA of rank 2 target_rank.

    Args:
        target_rank: Directions visited by the end of training, rank <= target_rank <= min(in, out);
            None means 4 * rank, or as many as there are. Equal to ``rank`` it is PiSSA.
        gamma: Share of the pairs that are swapped at a recomposition, in (0, 1].
        beta1, beta2: Decays of the importance scores, see :class:`Importance`.
        **options: See :class:`Adapter`; dropout must stay 0, the factors carry pretrained weight.

    Raises:
        PlanError: If target_rank, gamma or dropout do not fit.
    """

    carries_base = True
    next_B: Tensor
    next_A: Tensor
    ledger_B: Tensor
    ledger_A: Tensor
    progress: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        target_rank: int | None = None,
        gamma: float = 0.5,
        beta1: float = 0.85,
        beta2: float = 0.85,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> None:
        super().__init__(in_features, out_features, **options)
        limit = min(in_features, out_features)
        self.target_rank = min(4 * self.rank, limit) if target_rank is None else target_rank
        _check(self.rank, self.target_rank, limit, gamma, self.dropout)
        self.swap = max(1, round(gamma * self.rank))
        spare = self.target_rank - self.rank
        self.B = nn.Parameter(torch.empty(out_features, self.rank, device=device, dtype=dtype))
        self.A = nn.Parameter(torch.empty(self.rank, in_features, device=device, dtype=dtype))
        self.importance_B = Importance(self.B.shape, beta1, beta2, device)
        self.importance_A = Importance(self.A.shape, beta1, beta2, device)
        for name, pairs in (("next", spare), ("ledger", self.rank + 2 * spare)):
            self.register_buffer(f"{name}_B", torch.zeros(out_features, pairs, device=device))
            self.register_buffer(f"{name}_A", torch.zeros(pairs, in_features, device=device))
        self.register_buffer("progress", torch.zeros(2, dtype=torch.long))

    @property
    def entries(self) -> int:
        """Pairs in the ledger."""
        return int(self.progress[0])

    @property
    def cursor(self) -> int:
        """Spare directions that have been born."""
        return int(self.progress[1])

    @property
    def switches_left(self) -> int:
        """Recompositions for which directions remain."""
        return (self.target_rank - self.rank - self.cursor) // self.swap

    @torch.no_grad()
    def start(self, weight: Tensor, generator: torch.Generator | None = None) -> None:
        """Take the target_rank leading directions of the weight; the first r of them train."""
        u, s, vh = svd.leading(weight.float(), self.target_rank, generator)
        root = (s / self.scaling).sqrt()
        b, a = u * root, root[:, None] * vh
        self.B.copy_(b[:, : self.rank])
        self.A.copy_(a[: self.rank])
        self.next_B.copy_(b[:, self.rank :])
        self.next_A.copy_(a[self.rank :])
        self.progress.zero_()
        self._enter(-self.scaling * self.B.float(), self.A.float())

    def factors(self) -> tuple[Tensor, Tensor]:
        """(s B, A)."""
        return (self.B if self.scaling == 1.0 else self.B * self.scaling), self.A

    def correction(self) -> tuple[Tensor, Tensor]:
        """The ledger: everything fused, less everything born, since the original weight."""
        return self.ledger_B[:, : self.entries], self.ledger_A[: self.entries]

    def total(self) -> tuple[Tensor, Tensor]:
        """The whole change W - W0 as one LoRA, (B, A) of rank at most 2 target_rank, float32."""
        b, a = self.factors()
        c, d = self.correction()
        return torch.cat([c, b.float()], dim=1), torch.cat([d, a.float()], dim=0)

    def observe(self) -> None:
        """Take the present gradients into the importance scores."""
        if self.B.grad is not None and self.A.grad is not None:
            self.importance_B.observe(self.B, self.B.grad)
            self.importance_A.observe(self.A, self.A.grad)

    def scores(self) -> Tensor:
        """Importance of each pair, (r,): ``S_k = mean_i s(B_ik) + mean_j s(A_kj)``."""
        return self.importance_B.score().mean(0) + self.importance_A.score().mean(1)

    @torch.no_grad()
    def recompose(self) -> Tensor:
        """Fuse the weakest pairs and let them be born on the next unused directions.

        Returns:
            Indices of the swapped pairs, (r',); empty if too few directions remain. The owner of the
            weight then has to recompute it from :meth:`correction`, and the optimizer has to
            forget the state of these columns of B and rows of A.
        """
        if self.switches_left < 1:
            return torch.empty(0, dtype=torch.long, device=self.B.device)
        weakest = self.scores().argsort(stable=True)[: self.swap]
        born = slice(self.cursor, self.cursor + self.swap)
        self._enter(self.scaling * self.B[:, weakest].float(), self.A[weakest].float())
        self.B[:, weakest] = self.next_B[:, born].to(self.B)
        self.A[weakest] = self.next_A[born].to(self.A)
        self._enter(-self.scaling * self.B[:, weakest].float(), self.A[weakest].float())
        self.progress[1] += self.swap
        self.importance_B.reset()
        self.importance_A.reset()
        return weakest

    def _enter(self, b: Tensor, a: Tensor) -> None:
        """Append pairs to the ledger."""
        place = slice(self.entries, self.entries + a.shape[0])
        self.ledger_B[:, place] = b
        self.ledger_A[place] = a
        self.progress[0] += a.shape[0]


@register("pissa")
class PiSSA(SRLoRA):
    r"""PiSSA (Meng, Wang, Zhang, arXiv 2404.02948): SRLoRA that never switches.

    Args:
        **options: See :class:`Adapter`.
    """

    def __init__(
        self, in_features: int, out_features: int, *, rank: int = 8, **options: Any
    ) -> None:
        super().__init__(in_features, out_features, rank=rank, target_rank=rank, **options)


def _check(rank: int, target_rank: int, limit: int, gamma: float, dropout: float) -> None:
    if not rank <= target_rank <= limit:
        raise PlanError(
            f"target_rank {target_rank} does not fit",
            why=f"SRLoRA needs rank <= target_rank <= min(in, out), here {rank} <= ... <= {limit}",
            remedy=f"choose a target_rank between {rank} and {limit}, or leave it out",
        )
    if not 0 < gamma <= 1:
        raise PlanError(
            f"gamma {gamma} is no share of the pairs", remedy="choose gamma in (0, 1], usually 0.5"
        )
    if dropout:
        raise PlanError(
            "dropout does not go with factors that carry pretrained weight",
            why="dropping them would drop part of the base model",
            remedy="remove dropout, or use lora or symlora",
        )
