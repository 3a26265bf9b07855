"""Numbers that keep their type: whatever autocast would do to their products, or a cast to their model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_DEVICES = ("cpu", "cuda", "mps", "xpu")


@contextmanager
def uncast() -> Iterator[None]:
    """Inside a caller's autocast, products keep the type of their operands. A decorator as well."""
    with ExitStack() as stack:
        for device in filter(torch.is_autocast_enabled, _DEVICES):
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


def exact_product(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right``, rounded once, however roughly the products of a training may be computed (TF32, bf16).

    Summed in float64; Apple's accelerator has none, and no rougher products either.
    """
    if left.device.type == "mps":
        return left @ right
    return (left.double() @ right.double()).to(left.dtype)


class KeepsType(nn.Module):
    """A module whose tensors move with their model, and keep their type when it is cast."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype is tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)  # type: ignore[no-untyped-call]
