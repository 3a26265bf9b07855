"""A shorter model of the same kinds of blocks, so that one core can examine every name."""

from __future__ import annotations

from itertools import groupby

from torch import nn

KEPT = 2


def shorten(model: nn.Module) -> int:
    """Keep two of every run of equal blocks, in place.

    Two and not one: alternating blocks (shifted windows, local and global) differ only in attributes.

    Returns:
        How many blocks were taken out.
    """
    removed = 0
    for stack in list(model.modules()):
        if isinstance(stack, nn.Sequential | nn.ModuleList):
            surplus = _surplus(stack)
            for index in reversed(surplus):
                del stack[index]
            removed += len(surplus)
    return removed


def _surplus(stack: nn.Sequential | nn.ModuleList) -> list[int]:
    """Positions beyond the second in each run of blocks of one type and the same weight shapes."""
    runs = groupby(range(len(stack)), key=lambda index: _signature(stack[index]))
    return [index for signature, run in runs if signature[1] for index in list(run)[KEPT:]]


def _signature(block: nn.Module) -> tuple[str, tuple[tuple[str, tuple[int, ...]], ...]]:
    shapes = ((name, tuple(tensor.shape)) for name, tensor in block.state_dict().items())
    return type(block).__name__, tuple(shapes)
