"""SRLoRA: PiSSA whose weakest pairs are fused into the base and re-born along unused directions."""

from __future__ import annotations

from surgery.adapters.pissa import PiSSA
from surgery.adapters.recompose import Recomposed
from surgery.adapters.registry import register


@register("srlora")
class SRLoRA(Recomposed, PiSSA):
    r"""SRLoRA (Yang, Wang, Hossain, arXiv 2505.12433).

    .. math::
        W = W_0 + \mathrm{ledger} + s B A, \qquad
        B = U_{:r} (S_{:r}/s)^{1/2}, \; A = (S_{:r}/s)^{1/2} V_{:r}^T \text{ at the start}

    :class:`PiSSA` says how it starts, :class:`Recomposed` how it moves on; with target_rank = rank it is
    PiSSA, step for step. The ledger keeps every fused and every subtracted pair, at most
    2 target_rank - r of them, so the whole update is a LoRA of rank at most 2 target_rank.

    Args:
        target_rank, gamma, beta1, beta2: See :class:`Recomposed`.
        rank, alpha, scaling: See :class:`Adapter`.
    """
