"""Symmetric recomposition: the polar form whose weakest pairs are re-born along unused directions."""

from __future__ import annotations

from typing import Any

import torch

from surgery.adapters.base import Scaling
from surgery.adapters.polar import Polar
from surgery.adapters.recompose import Recomposed
from surgery.adapters.registry import register


@register("sym-srlora")
class SymSRLoRA(Recomposed, Polar):
    r"""SRLoRA with half the trained weights. An idea of this project, not of a paper.

    :class:`Polar` with the singular start says how it starts, :class:`Recomposed` how it moves on.
    A pair is a column of Q with its entry of l; the unused singular directions of W are the unused
    eigen-directions of its symmetric factor, so recomposition (arXiv 2505.12433) carries over as it
    is. The importance of a pair is the mean over the column plus that of the entry, and does not depend on c.

    Args:
        target_rank, gamma, beta1, beta2: See :class:`Recomposed`.
        rank, alpha, scaling: See :class:`Adapter`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        target_rank: int | None = None,
        gamma: float = 0.5,
        beta1: float = 0.85,
        beta2: float = 0.85,
        rank: int = 8,
        alpha: float | None = None,
        scaling: Scaling = "lora",
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        options: dict[str, Any] = {
            "target_rank": target_rank,
            "gamma": gamma,
            "beta1": beta1,
            "beta2": beta2,
            "rank": rank,
            "alpha": alpha,
            "scaling": scaling,
            "device": device,
            "dtype": dtype,
        }
        super().__init__(in_features, out_features, start="singular", **options)
