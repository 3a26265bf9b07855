"""Attentions that run for nothing: whatever they give, the outputs of the model stay the same.

The last layer of Pegasus-X lets its global tokens attend, and nobody asks for the answer. A captured graph leaves
such computations out; so they are told from those that were overlooked by changing what they give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from surgery.anatomy.runtime import AttentionWatch, watching


def idle_attentions(call: Callable[[], object], numbers: Iterable[int]) -> list[int]:
    """Those of the attentions with these ``numbers`` that no output of ``call`` depends on.

    Args:
        call: Runs a model on fixed inputs and returns its outputs. What two equal runs disagree on, or what gives
            no tensor, shows nothing: then no attention is idle.
        numbers: Places among the attentions of one run.
    """
    wanted = list(numbers)
    if not wanted:
        return []
    usual, again = _outputs(call, AttentionWatch()), _outputs(call, AttentionWatch())
    if not usual or not _equal(usual, again):
        return []
    return [number for number in wanted if _is_idle(call, number, usual)]


@dataclass
class _Altering(AttentionWatch):
    """Adds noise to what one attention gives."""

    number: int = 0
    altered: bool = False

    def attended(self, result: Tensor, event: int) -> Tensor:
        if event == self.number:
            self.altered = True
            result.add_(torch.ones_like(result))
        return result


def _is_idle(call: Callable[[], object], number: int, usual: list[Tensor]) -> bool:
    watcher = _Altering(number=number)
    outputs = _outputs(call, watcher)
    return watcher.altered and _equal(usual, outputs)


def _outputs(call: Callable[[], object], watcher: AttentionWatch) -> list[Tensor]:
    made: list[object] = []
    watching(lambda: made.append(call()), watcher)
    return [leaf.clone() for leaf in pytree.tree_leaves(made) if isinstance(leaf, Tensor)]


def _equal(one: list[Tensor], two: list[Tensor]) -> bool:
    """Bit for bit, where both are numbers."""
    return len(one) == len(two) and all(
        a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())
        for a, b in zip(one, two, strict=True)
    )
