"""Random starts."""

from __future__ import annotations

import torch
from torch import Tensor


def orthonormal(rows: int, columns: int, generator: torch.Generator | None) -> Tensor:
    """Random orthonormal columns, (rows, columns), float32, on the CPU, uniform on the Stiefel manifold.

    Fixing the signs of R's diagonal makes the QR of a Gaussian matrix uniform (Mezzadri, 2007).
    """
    gaussian = torch.randn(rows, columns, generator=generator, device="cpu", dtype=torch.float32)
    q, r = torch.linalg.qr(gaussian)
    oriented: Tensor = q * torch.where(r.diagonal() < 0, -1.0, 1.0).to(q)
    return oriented


def twins(rows: int, columns: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Random orthonormal columns, each of them twice, and signs under which twins cancel.

    Returns:
        Q (rows, columns) and signs (columns,) with Q diag(signs) Q^T = 0 but for rounding: the first half of the
        columns again as the second half, with signs 1 and -1; an odd one out stands last, with sign 0.
    """
    pairs, odd = divmod(columns, 2)
    q = orthonormal(rows, pairs + odd, generator)
    signs = torch.tensor([1.0] * pairs + [-1.0] * pairs + [0.0] * odd, dtype=torch.float32)
    return torch.cat([q[:, :pairs], q], 1), signs
