"""What may be added to the loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from surgery.adapters.symlora import SymLoRA
from surgery.errors import StateError
from surgery.operations.adapted import adapters_of


def orthogonality_penalty(model: nn.Module) -> Tensor:
    """``sum of ||Q^T Q - I||_F^2`` over the SymLoRA adapters of a model, a differentiable scalar.

    ``loss = task + 1e-3 * surgery.orthogonality_penalty(model)`` keeps their Q near orthonormal (SymLoRA, arXiv
    2504.03719, starts there). Adapters of other kinds have no part in it.

    Args:
        model: Adapted; may be wrapped (DDP, torch.compile).

    Raises:
        StateError: If it has no SymLoRA adapter.
    """
    found = [adapter for _, adapter in adapters_of(model) if isinstance(adapter, SymLoRA)]
    if not found:
        raise StateError(
            "the model has no SymLoRA adapter",
            remedy="apply a policy with adapter 'symlora', or leave the penalty out",
        )
    return torch.stack([adapter.orthogonality_penalty() for adapter in found]).sum()
