"""What example inputs of many model types are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Inputs = dict[str, Any]
Makers = dict[str, Callable[[Any], Inputs]]
TOKENS = 16


def ids(length: int = TOKENS) -> Tensor:
    """Two texts."""
    return torch.randint(5, 60, (2, length))


def ones(*shape: int) -> Tensor:
    """A mask that hides nothing."""
    return torch.ones(shape, dtype=torch.long)


def with_tokens(token: int, count: int, length: int = 32) -> Tensor:
    """Two texts in each of which ``count`` tokens stand for an image or a sound."""
    tokens = ids(length)
    tokens[:, 1 : 1 + count] = token
    return tokens


def clip() -> Tensor:
    """Two clips of two small frames."""
    return torch.rand(2, 2, 3, 32, 32)
