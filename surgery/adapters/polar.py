"""The polar form of SymLoRA: a symmetric update of any shape, by way of the weight's own isometry."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from surgery.adapters import svd
from surgery.adapters.ledger import Ledger
from surgery.adapters.registry import register
from surgery.adapters.singular import SingularStart
from surgery.adapters.symlora import (
    STEP,
    Start,
    begin,
    check_start,
    eigenvalues,
    symmetric_gains,
)
from surgery.adapters.widths import exact_product, uncast
from surgery.errors import PlanError


@register("polar")
class Polar(SingularStart):
    r"""Symmetric update of the symmetric factor of the weight. An idea of this project, not of a paper.

    .. math::
        \Delta W = s\, R\, Q\, \mathrm{diag}(L)\, Q^T \;(out \ge in), \qquad
        \Delta W = s\, Q\, \mathrm{diag}(L)\, Q^T R \;(out < in)

    with R = U V^T of the original weight W = U S V^T, the isometry of its polar decomposition W = R P
    (or P R), and Q with min(in, out) rows. P is symmetric, so its update may be, whatever the shape of
    W; SymLoRA (arXiv 2504.03719) is the case R = I. r (min(in, out) + 1) weights.

    L = c l with c = 0.58 sqrt(out), for the reason given at :class:`SymLoRA`; out and not min(in, out)
    because LoRA's update grows with sqrt(out) too. R is no part of the state dict: it is as large as the
    weight and follows from it, see :meth:`read_base`.

    Args:
        start: ``"zero"`` and ``"twins"``: see :class:`SymLoRA`. ``"singular"``: Q = the leading singular vectors
            of the shorter side times the roots of their singular values over s, L = 1, subtracted from the
            frozen weight: PiSSA (arXiv 2404.02948) with half the trained weights. PiSSA's A is this Q^T, so a
            step of Q moves the weight as far as one of A does; with orthonormal Q and the values in L it would
            move it by the root of the value more.
        **options: See :class:`Adapter`; no dropout with the singular start.

    Raises:
        PlanError: If the start is unknown or does not go with dropout.
    """

    R: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        start: Start | Literal["singular"] = "zero",
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> None:
        super().__init__(in_features, out_features, **options)
        _check(start, self.dropout)
        self.beginning, self.carries_base = start, start == "singular"
        self.step = STEP * math.sqrt(out_features)
        rows, pairs = min(in_features, out_features), self.rank if self.carries_base else 0
        self.Q = nn.Parameter(torch.empty(rows, self.rank, device=device, dtype=dtype))
        self.l = nn.Parameter(torch.empty(self.rank, device=device, dtype=dtype))
        isometry = torch.empty(out_features, in_features, device=device, dtype=dtype)
        self.register_buffer("R", isometry, persistent=False)
        self.ledger = Ledger(in_features, out_features, pairs, device=device)

    @torch.no_grad()
    def start(self, weight: Tensor, generator: torch.Generator | None = None) -> None:
        """R from the weight; then Q and l at random, or from the weight."""
        if self.carries_base:
            super().start(weight, generator)
        else:
            self.read_base(weight)
            begin(self.beginning, self.Q, self.l, self.step, generator)

    def read_base(self, weight: Tensor) -> None:
        """Recompute R."""
        self._decompose(weight)

    def eigenvalues(self) -> Tensor:
        """Those of the update of P / s that are not zero by its rank, (r,), rising."""
        return eigenvalues(self.Q, self.l * self.step)

    def factors(self) -> tuple[Tensor, Tensor]:
        """(s R Q diag(L), Q^T), or (s Q diag(L), Q^T R) where out < in."""
        scaled = self.l * (self.step * self.scaling)
        isometry = self.R.to(self.Q.dtype)  # FSDP2 may cast parameters alone
        if self.out_features >= self.in_features:
            return (isometry @ self.Q) * scaled, self.Q.T
        return self.Q * scaled, self.Q.T @ isometry

    def correction(self) -> tuple[Tensor, Tensor] | None:
        """The ledger of the singular start; None with the others."""
        return super().correction() if self.carries_base else None

    def pairs(self) -> dict[str, tuple[nn.Parameter, int]]:
        """Columns of Q with entries of l."""
        return {"Q": (self.Q, 1), "l": (self.l, 0)}

    def directions(self, weight: Tensor, count: int) -> dict[str, Tensor]:
        """Q and l of the leading singular directions, Q diag(L) Q^T = V S V^T / s; R is recomputed on the way.

        Where S is 0 a column of Q is the direction and L is 0, since Q = 0 would have no gradient for ever.
        """
        u, s, vh = self._decompose(weight)
        vectors = vh.T if self.out_features >= self.in_features else u
        roots = (s[:count] / self.scaling).sqrt()
        alive = roots > 0
        return {
            "Q": vectors[:, :count] * torch.where(alive, roots, 1),
            "l": alive.to(roots) / self.step,
        }

    @classmethod
    def first_order_gains(cls, gradient: Tensor, weight: Tensor, count: int) -> Tensor:
        """``|eigenvalues|`` of the symmetric part of R^T G, or of G R^T where out < in."""
        u, _, vh = svd.decompose(weight, min(weight.shape))
        tall = weight.shape[0] >= weight.shape[1]
        return symmetric_gains((u @ vh).T @ gradient if tall else gradient @ (u @ vh).T, count)

    @torch.no_grad()
    @uncast()
    def _decompose(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All singular triplets of the weight, which set R."""
        u, s, vh = svd.leading(weight.float(), min(weight.shape))
        self.R.copy_(exact_product(u, vh))
        return u, s, vh


def _check(start: str, dropout: float) -> None:
    check_start(start, (*get_args(Start), "singular"))
    if start == "singular" and dropout:
        raise PlanError(
            "dropout does not go with the singular start",
            why="the factors carry pretrained weight, and dropping them would drop part of it",
            remedy="remove dropout, or set start: zero",
        )
