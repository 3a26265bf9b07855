"""What every adapter is: trainable factors of one projection, dW = B A."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from surgery.adapters.svd import decompose
from surgery.adapters.widths import uncast
from surgery.errors import PlanError

Scaling = Literal["lora", "rslora"]


class Adapter(nn.Module, ABC):
    r"""Low-rank update of one projection.

    .. math:: \Delta W = B A, \qquad B \in R^{out \times r}, \; A \in R^{r \times in}

    An adapter knows tensors and no models: the projection that it sits on hands it the rows of
    its weight once, in :meth:`start`. Its parameters are exactly what trains; everything else it
    needs to resume is in buffers.

    Args:
        in_features: Input channels of the projection.
        out_features: Output channels of the projection.
        rank: Number of pairs r, 1 <= r <= min(in_features, out_features).
        alpha: Numerator of the scaling; None means ``rank``, a scaling of 1.
        scaling: ``"lora"`` for alpha / r, ``"rslora"`` for alpha / sqrt(r) (arXiv 2312.03732).
        dropout: Probability of dropping an input channel while training.
        device: Where the factors live.
        dtype: Type of the factors, whatever the type of the weight.

    Raises:
        PlanError: If the rank does not fit the projection.
    """

    kind: ClassVar[str]
    carries_base: bool = False
    """Whether the factors hold a share of the pretrained weight (no weight decay, no dropout)."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        rank: int = 8,
        alpha: float | None = None,
        scaling: Scaling = "lora",
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        _check(in_features, out_features, rank, scaling, dropout)
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.alpha = float(rank if alpha is None else alpha)
        self.scaling = self.alpha / (rank if scaling == "lora" else rank**0.5)
        self.dropout = dropout

    @abstractmethod
    def start(self, weight: Tensor, generator: torch.Generator | None = None) -> None:
        """Set the factors.

        Args:
            weight: The rows of this projection of the original weight, (out, in), float32. Not to be
                written to: it may be the model's own memory.
            generator: Source of randomness, on the CPU; None uses the global one.
        """

    def read_base(self, weight: Tensor) -> None:
        """Recompute what hangs on the original weight and is not in the state dict; mostly nothing.

        Whoever loads a state dict into a new adapter instead of starting it calls this first.

        Args:
            weight: As for :meth:`start`.
        """

    @abstractmethod
    def factors(self) -> tuple[Tensor, Tensor]:
        """Return (B, A), (out, r) and (r, in), scaling included and differentiable: dW is B @ A exactly."""

    def forward(self, x: Tensor) -> Tensor:
        """The change of the projection's output: (..., in) -> (..., out), in the type of ``x``."""
        b, a = self.factors()
        dtype = x.dtype
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(a.dtype)
        if self.dropout:
            x = F.dropout(x, self.dropout, self.training)
        return F.linear(F.linear(x, a), b).to(dtype)

    def scaled(self, b: Tensor) -> Tensor:
        """s B; where s is 1, B itself: the product would be a copy and a node of the graph."""
        return b if self.scaling == 1.0 else b * self.scaling

    @torch.no_grad()
    @uncast()
    def delta(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """The update as a matrix, (out, in), accumulated in ``dtype``."""
        b, a = self.factors()
        return b.to(dtype) @ a.to(dtype)

    @classmethod
    def first_order_gains(cls, gradient: Tensor, weight: Tensor, count: int) -> Tensor:
        r"""What the best pairs on a weight would be worth: how fast the loss falls along each, largest first.

        Of all updates of rank r with spectral norm 1, the one that the gradient G asks for is worth the
        sum of G's r largest singular values, so pair k is worth :math:`\sigma_k(G)`. Adapters whose updates
        are symmetric say less. (One with an A fixed at random reaches some share of it.)

        Args:
            gradient: Of the loss with respect to the weight's rows, (out, in), float32.
            weight: These rows, likewise.
            count: How many pairs, at most min(out, in).

        Returns:
            (count,), float32.
        """
        return decompose(gradient, count)[1]

    def correction(self) -> tuple[Tensor, Tensor] | None:
        """Low-rank (C, D), (out, k) and (k, in), float32: the frozen weight is round(W0 + C @ D).

        None where the base stays as it is (adapters that start at zero).
        """
        return None

    def extra_repr(self) -> str:
        """Shown when the model is printed."""
        return f"{self.in_features} -> {self.out_features}, rank={self.rank}"


def _check(in_features: int, out_features: int, rank: int, scaling: str, dropout: float) -> None:
    limit = min(in_features, out_features)
    if not 1 <= rank <= limit:
        raise PlanError(
            f"rank {rank} does not fit a projection of {in_features} -> {out_features}",
            why=f"a low-rank update needs 1 <= rank <= min(in, out) = {limit}",
            remedy=f"ask for rank={max(1, min(rank, limit))} or leave this projection out",
        )
    if scaling not in ("lora", "rslora"):
        raise PlanError(
            f"unknown scaling {scaling!r}",
            why="it is 'lora' (alpha / r) or 'rslora' (alpha / sqrt(r))",
            remedy="set scaling: lora",
        )
    if not 0.0 <= dropout < 1.0:
        raise PlanError(
            f"dropout {dropout} is no probability below 1",
            remedy="set dropout between 0 and 0.5",
        )
