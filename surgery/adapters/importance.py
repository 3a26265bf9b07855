"""How much the loss cares for each entry of a factor: sensitivity, smoothed, times its uncertainty."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Importance(nn.Module):
    r"""Importance scores of the entries of one parameter (AdaLoRA's, as SRLoRA uses them).

    .. math::
        I = |w \cdot \partial L / \partial w|, \quad
        \bar I \leftarrow \beta_1 \bar I + (1 - \beta_1) I, \quad
        \bar U \leftarrow \beta_2 \bar U + (1 - \beta_2) |I - \bar I|, \quad
        s = \bar I \, \bar U

    with the updated mean in the uncertainty (arXiv 2505.12433, section on importance). The
    running values are buffers, so that training resumes where it stopped.

    Args:
        shape: Shape of the parameter.
        beta1: Decay of the mean sensitivity.
        beta2: Decay of its uncertainty.
        device: Where the parameter lives.
    """

    mean: Tensor
    uncertainty: Tensor

    def __init__(
        self,
        shape: torch.Size,
        beta1: float,
        beta2: float,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.beta1, self.beta2 = beta1, beta2
        self.register_buffer("mean", torch.zeros(shape, device=device))
        self.register_buffer("uncertainty", torch.zeros(shape, device=device))

    @torch.no_grad()
    def observe(self, weight: Tensor, gradient: Tensor) -> None:
        """Take in one optimizer step's gradient, unscaled, before the step."""
        sensitivity = (weight.float() * gradient.float()).abs_()
        self.mean.lerp_(sensitivity, 1 - self.beta1)
        self.uncertainty.lerp_(sensitivity.sub_(self.mean).abs_(), 1 - self.beta2)

    def score(self) -> Tensor:
        """s of every entry, in the shape of the parameter."""
        return self.mean * self.uncertainty

    def reset(self) -> None:
        """Forget everything."""
        self.mean.zero_()
        self.uncertainty.zero_()
