"""How much the loss cares for each entry of a factor: sensitivity, smoothed, times its uncertainty."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from surgery.adapters.widths import KeepsType

Observed = tuple["Importance", Tensor, Tensor]
"""Scores, their parameter, and its gradient."""

_AT_ONCE = 2**24
"""Entries taken in together: 64 MB of intermediate values."""


class Importance(KeepsType):
    r"""Importance scores of the entries of one parameter (AdaLoRA's, as SRLoRA uses them).

    .. math::
        I = |w \cdot \partial L / \partial w|, \quad
        \bar I \leftarrow \beta_1 \bar I + (1 - \beta_1) I, \quad
        \bar U \leftarrow \beta_2 \bar U + (1 - \beta_2) |I - \bar I|, \quad
        s = \bar I \, \bar U

    with the updated mean in the uncertainty (arXiv 2505.12433, section on importance). The
    running values are buffers, so that training resumes where it stopped; they stay float32 when the
    model is cast.

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
        self.register_buffer("mean", torch.zeros(shape, device=device, dtype=torch.float32))
        self.register_buffer("uncertainty", torch.zeros_like(self.mean))

    @torch.no_grad()
    def observe(self, weight: Tensor, gradient: Tensor) -> None:
        """Take in one optimizer step's gradient, unscaled, before the step."""
        observe([(self, weight, gradient)])

    def score(self) -> Tensor:
        """s of every entry, in the shape of the parameter."""
        return self.mean * self.uncertainty

    def reset(self) -> None:
        """Forget everything."""
        self.mean.zero_()
        self.uncertainty.zero_()


@torch.no_grad()
def observe(every: Iterable[Observed]) -> None:
    """:meth:`Importance.observe` of many at once: a few launches on a GPU, instead of six for each."""
    alike: dict[tuple[float, float, torch.device], list[Observed]] = defaultdict(list)
    for one in every:
        alike[one[0].beta1, one[0].beta2, one[1].device].append(one)
    for (beta1, beta2, _), group in alike.items():
        for some in _bounded(group):
            _observe(some, beta1, beta2)


def _observe(group: list[Observed], beta1: float, beta2: float) -> None:
    means = [scores.mean for scores, _, _ in group]
    uncertainties = [scores.uncertainty for scores, _, _ in group]
    weights = [weight.detach().float() for _, weight, _ in group]
    sensitivities = torch._foreach_mul(weights, [gradient.float() for _, _, gradient in group])
    torch._foreach_abs_(sensitivities)
    torch._foreach_lerp_(means, sensitivities, 1 - beta1)
    torch._foreach_sub_(sensitivities, means)
    torch._foreach_abs_(sensitivities)
    torch._foreach_lerp_(uncertainties, sensitivities, 1 - beta2)


def _bounded(group: list[Observed]) -> Iterator[list[Observed]]:
    """The group in pieces of bounded size, or of one."""
    piece: list[Observed] = []
    size = 0
    for one in group:
        if piece and size + one[1].numel() > _AT_ONCE:
            yield piece
            piece, size = [], 0
        piece.append(one)
        size += one[1].numel()
    yield piece
