"""SymLoRA: symmetric low-rank adaptation with half of LoRA's weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from surgery.adapters.base import Adapter
from surgery.adapters.random import orthonormal, twins
from surgery.adapters.registry import register
from surgery.adapters.svd import decompose
from surgery.errors import PlanError

STEP = 0.58
"""L takes steps STEP * sqrt(n) times Q's, so that one optimizer group moves dW as fast as LoRA's."""
TWIN = 1 / math.sqrt(12)
"""|L| of twins: a step of both columns moves dW as far as one of LoRA's B, whose A has rows of norm 1 / sqrt(3)."""
Start = Literal["zero", "twins"]


@register("symlora")
class SymLoRA(Adapter):
    r"""SymLoRA (Panoutsos, Santos, Figueiredo, arXiv 2504.03719).

    .. math:: \Delta W = s\, Q\, \mathrm{diag}(L)\, Q^T, \qquad Q \in R^{n \times r}, L \in R^r

    r (n + 1) weights on an n x n projection, against LoRA's 2 r n. Our choices, not the paper's:

    * L = 0 and Q orthonormal at the start, so that not a bit of the function changes and L really are eigenvalues;
    * or twins: each column of Q stands there twice, with L = 0.29 and -0.29, which cancel but for rounding. With
      L = 0 Q has no gradient at first and r numbers alone move dW; twins part from the first step on, and by n
      numbers a pair, as LoRA's B. They are ahead at small learning rates, and level at the best one (docs/study.md);
    * the trained vector is l with L = c l, c = 0.58 sqrt(n): under Adam that is a learning rate c
      times larger for L alone. Without it a shared learning rate moves dW 20 to 45 times slower than LoRA's;
    * a rectangular projection is truncated only on request: Q has max(out, in) rows and the
      shorter side uses the first min(out, in) of them (after SingLoRA, arXiv 2507.05566).

    Args:
        rectangular: ``"error"`` refuses projections with in != out, ``"truncate"`` truncates.
        start: ``"zero"`` or ``"twins"``, which are the same at rank 1.
        **options: See :class:`Adapter`.

    Raises:
        PlanError: If the start is unknown, or the projection is rectangular and truncation was not asked for.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        rectangular: Literal["error", "truncate"] = "error",
        start: Start = "zero",
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> None:
        super().__init__(in_features, out_features, **options)
        _check_shape(in_features, out_features, rectangular)
        check_start(start, get_args(Start))
        n = max(in_features, out_features)
        self.beginning, self.step = start, STEP * math.sqrt(n)
        self.Q = nn.Parameter(torch.empty(n, self.rank, device=device, dtype=dtype))
        self.l = nn.Parameter(torch.empty(self.rank, device=device, dtype=dtype))

    @torch.no_grad()
    def start(self, weight: Tensor, generator: torch.Generator | None = None) -> None:
        """Q random, l = 0 or that of twins; the weight is not looked at."""
        begin(self.beginning, self.Q, self.l, self.step, generator)

    def eigenvalues(self) -> Tensor:
        """Those of dW / s, or of the square that it was cut from, that are not zero by its rank: (r,), rising."""
        return eigenvalues(self.Q, self.l * self.step)

    def factors(self) -> tuple[Tensor, Tensor]:
        """(s Q diag(L), Q^T): SymLoRA is a LoRA of the same rank without loss."""
        left: Tensor = self.Q
        right: Tensor = self.Q
        if self.out_features != self.in_features:  # a slice of all rows is a node of the graph too
            left, right = left[: self.out_features], right[: self.in_features]
        a = right.T  # first: its gradient then comes last, into one that lies as Q does
        return left * (self.l * (self.step * self.scaling)), a

    @classmethod
    def first_order_gains(cls, gradient: Tensor, weight: Tensor, count: int) -> Tensor:
        """The largest ``|eigenvalues|`` of the gradient's symmetric part: the rest of it moves no symmetric dW."""
        n = max(gradient.shape)
        square = gradient.new_zeros(n, n)
        square[: gradient.shape[0], : gradient.shape[1]] = gradient
        return symmetric_gains(square, count)

    def orthogonality_penalty(self) -> Tensor:
        """``||Q^T Q - I||_F^2``, a scalar to add to the loss if Q should stay orthonormal. Of twins it starts at r."""
        gram = self.Q.T @ self.Q
        return (gram - torch.eye(self.rank, device=gram.device, dtype=gram.dtype)).square().sum()


def symmetric_gains(gradient: Tensor, count: int) -> Tensor:
    """What the best symmetric pairs are worth, (count,): ``|eigenvalues|`` of a square gradient's symmetric part."""
    return decompose((gradient + gradient.T) / 2, count)[1]


def begin(start: str, q: Tensor, l: Tensor, step: float, generator: torch.Generator | None) -> None:
    """Set Q and l = L / ``step`` as ``start`` says, in place; the caller takes no gradients."""
    if start == "twins":
        columns, signs = twins(len(q), len(l), generator)
        q.copy_(columns)
        l.copy_(signs * (TWIN / step))
    else:
        q.copy_(orthonormal(len(q), len(l), generator))
        l.zero_()


def eigenvalues(q: Tensor, values: Tensor) -> Tensor:
    """The eigenvalues of Q diag(values) Q^T that are not zero by its rank, (r,), rising.

    With Q = Q' R, an orthonormal Q' and r x r, they are those of R diag(values) R^T. NaN where a value is not finite.
    """
    r = torch.linalg.qr(q.float(), mode="r").R
    small = (r * values.float()) @ r.T
    if not small.isfinite().all():
        return torch.full_like(small[0], torch.nan)
    found: Tensor = torch.linalg.eigvalsh(small)
    return found


def check_start(start: str, known: Sequence[str]) -> None:
    """Raise PlanError if ``start`` is none of ``known``."""
    if start not in known:
        raise PlanError(
            f"unknown start {start!r}", remedy=f"set start to one of {', '.join(known)}"
        )


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
