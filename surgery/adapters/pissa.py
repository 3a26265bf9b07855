"""PiSSA: LoRA that starts on the principal directions of the weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from surgery.adapters import svd
from surgery.adapters.base import Scaling
from surgery.adapters.ledger import Ledger
from surgery.adapters.registry import register
from surgery.adapters.singular import SingularStart


@register("pissa")
class PiSSA(SingularStart):
    r"""PiSSA (Meng, Wang, Zhang, arXiv 2404.02948).

    .. math::
        W = (W_0 - s B_0 A_0) + s B A, \qquad
        B_0 = U_{:r} (S_{:r}/s)^{1/2}, \; A_0 = (S_{:r}/s)^{1/2} V_{:r}^T

    with W0 = U S V^T, so the function starts unchanged. r (in + out) weights. It is SRLoRA that never
    switches. Dropout is no option: it would drop part of the pretrained weight.

    Args:
        rank, alpha, scaling: See :class:`Adapter`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        rank: int = 8,
        alpha: float | None = None,
        scaling: Scaling = "lora",
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(in_features, out_features, rank=rank, alpha=alpha, scaling=scaling)
        self.B = nn.Parameter(torch.empty(out_features, rank, device=device, dtype=dtype))
        self.A = nn.Parameter(torch.empty(rank, in_features, device=device, dtype=dtype))
        self.ledger = Ledger(in_features, out_features, rank, device=device)

    def factors(self) -> tuple[Tensor, Tensor]:
        """(s B, A)."""
        return self.scaled(self.B), self.A

    def pairs(self) -> dict[str, tuple[nn.Parameter, int]]:
        """Columns of B with rows of A."""
        return {"B": (self.B, 1), "A": (self.A, 0)}

    def directions(self, weight: Tensor, count: int) -> dict[str, Tensor]:
        """``B = U (S/s)^(1/2)``, ``A = (S/s)^(1/2) V^T`` of the leading triplets.

        Where S is 0 (a weight initialised to zeros) A is V^T, since B = A = 0 would have no gradient for ever.
        """
        u, s, vh = svd.leading(weight, count)
        root = (s / self.scaling).sqrt()
        return {"B": u * root, "A": torch.where(root > 0, root, 1)[:, None] * vh}
