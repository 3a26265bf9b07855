"""Random starts."""

from __future__ import annotations

import torch
from torch import Tensor


def orthonormal(rows: int, columns: int, generator: torch.Generator | None) -> Tensor:
    """Random orthonormal columns, (rows, columns), float32, on the CPU, uniform on the Stiefel manifold.

    Fixing the signs of R's diagonal makes the QR of a Gaussian matrix uniform (Mezzadri, 2007).
    """
    gaussian = torch.randn(rows, columns, generator=generator, device="cpu")
    q, r = torch.linalg.qr(gaussian)
    signs: Tensor = torch.where(r.diagonal() < 0, -1.0, 1.0)
    oriented: Tensor = q * signs
    return oriented
