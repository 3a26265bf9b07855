"""Padding masks: which inputs are such, what marks a token in them, and others of the same sense."""

from __future__ import annotations

import torch
from torch import Tensor

MASK = "mask"


def is_mask(name: str, value: Tensor) -> bool:
    """Whether this may be a padding mask: by its name, with two dimensions, of whole numbers."""
    return MASK in name and value.ndim == 2 and not value.is_floating_point()


def token_of(value: Tensor) -> bool:
    """What a padding mask holds where there is a token: transformers' 1, torch's False.

    Whole numbers are 1 where there is a token, if any is; of booleans it is what fills whole rows, none of
    which is all padding, or what there is more of.
    """
    kept = value.bool()
    if value.dtype is not torch.bool:
        return bool(kept.any())
    rows = kept[(kept == kept[:, :1]).all(1)]
    return bool((rows if len(rows) else kept).float().mean() >= 0.5)


def as_padding(seen: Tensor, like: Tensor) -> Tensor:
    """Where there are tokens, (batch, sequence), as a padding mask of the kind and in the sense of ``like``."""
    return (seen.to(like.device) == token_of(like)).to(like.dtype)


def ragged(shape: list[int], like: Tensor) -> Tensor:
    """Row 0 keeps all its tokens, each further row a third less, and at least one."""
    batch, length = shape
    lengths = torch.tensor([max(1, length - row * length // 3) for row in range(batch)])
    return as_padding(torch.arange(length)[None, :] < lengths[:, None], like)
