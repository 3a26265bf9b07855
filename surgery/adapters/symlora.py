"""SymLoRA: symmetric low-rank adaptation with half of LoRA's weights."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from surgery.adapters.base import Adapter
from surgery.adapters.random import orthonormal
from surgery.adapters.registry import register
from surgery.adapters.svd import decompose
from surgery.errors import PlanError

STEP = 0.58
"""L takes steps STEP * sqrt(n) times Q's, so that one optimizer group moves dW as fast as LoRA's."""


@register("symlora")
class SymLoRA(Adapter):
    r"""SymLoRA (Panoutsos, Santos, Figueiredo, arXiv 2504.03719).

    .. math:: \Delta W = s\, Q\, \mathrm{diag}(L)\, Q^T, \qquad Q \in R^{n \times r}, L \in R^r

    r (n + 1) weights on an n x n projection, against LoRA's 2 r n. Our choices, not the paper's:

    * L = 0 and Q orthonormal at the start, so the function starts unchanged and L really are eigenvalues;
    * the trained vector is l with L = c l, c = 0.58 sqrt(n): under Adam that is a learning rate c
      times larger for L alone. Without it a shared learning rate moves dW 20 to 45 times slower than LoRA's;
    * a rectangular projection is truncated only on request: Q has max(out, in) rows and the
      shorter side uses the first min(out, in) of them (after SingLoRA, arXiv 2507.05566).

    Args:
        rectangular: ``"error"`` refuses projections with in != out, ``"truncate"`` truncates.
        **options: See :class:`Adapter`.

    Raises:
        PlanError: If the projection is rectangular and truncation was not asked for.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        rectangular: Literal["error", "truncate"] = "error",
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> None:
        super().__init__(in_features, out_features, **options)
        _check_shape(in_features, out_features, rectangular)
        n = max(in_features, out_features)
        self.step = STEP * math.sqrt(n)
        self.Q = nn.Parameter(torch.empty(n, self.rank, device=device, dtype=dtype))
        self.l = nn.Parameter(torch.empty(self.rank, device=device, dtype=dtype))

    @torch.no_grad()
    def start(self, weight: Tensor, generator: torch.Generator | None = None) -> None:
        """l = 0, Q orthonormal; the weight is not looked at."""
        self.Q.copy_(orthonormal(self.Q.shape[0], self.rank, generator))
        self.l.zero_()

    def eigenvalues(self) -> Tensor:
        """L = c l, (r,): the eigenvalues of dW / s as long as Q stays orthonormal."""
        return self.l * self.step

    def factors(self) -> tuple[Tensor, Tensor]:
        """(s Q diag(L), Q^T): SymLoRA is a LoRA of the same rank without loss."""
        left: Tensor = self.Q
        right: Tensor = self.Q
        if self.out_features != self.in_features:  # a slice of all rows is a node of the graph too
            left, right = left[: self.out_features], right[: self.in_features]
        a = right.T  # first: its gradient then comes last, into one that lies as Q does
        return left * (self.l * (self.step * self.scaling)), a

    @classmethod
    def first_order_gains(cls, gradient: Tensor, count: int) -> Tensor:
        """The largest ``|eigenvalues|`` of the gradient's symmetric part: the rest of it moves no symmetric dW."""
        n = max(gradient.shape)
        square = gradient.new_zeros(n, n)
        square[: gradient.shape[0], : gradient.shape[1]] = gradient
        return decompose((square + square.T) / 2, count)[1]

    def orthogonality_penalty(self) -> Tensor:
        """``||Q^T Q - I||_F^2``, a scalar to add to the loss if Q should stay orthonormal."""
        gram = self.Q.T @ self.Q
        return (gram - torch.eye(self.rank, device=gram.device, dtype=gram.dtype)).square().sum()


def _check_shape(in_features: int, out_features: int, rectangular: str) -> None:
    if rectangular not in ("error", "truncate"):
        raise PlanError(
            f"unknown treatment {rectangular!r} of rectangular projections",
            remedy="set rectangular: error or truncate",
        )
    if in_features != out_features and rectangular == "error":
        raise PlanError(
            f"SymLoRA needs a square projection, this one is {in_features} -> {out_features}",
            why="Q diag(L) Q^T is symmetric",
            remedy="set rectangular: truncate in the policy (an extension of ours), or use lora or "
            "polar there",
        )
