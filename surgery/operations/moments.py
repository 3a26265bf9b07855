"""What an optimizer remembers of single pairs: its moments are forgotten, its copies of the values follow them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from surgery.operations.sharding import as_part_of, change_whole, clear, is_sharded, whole

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

_LOG = logging.getLogger(__name__)
_MOMENTS = ("exp_avg", "max_exp_avg", "momentum")


@dataclass(frozen=True)
class Remembered:
    """A tensor of an optimizer's state with a row, a column or an entry for each pair.

    Attributes:
        parameter: What it belongs to.
        along: The dimension of the parameter along which its pairs lie.
        key: Its name in the state.
        value: The tensor.
        dim: The dimension of ``value`` along which the pairs lie.
        is_copy: Whether it is the parameter in other words and no moment: a master copy in higher precision, the
            slow weights of Lookahead, the point that a schedule-free optimizer averages.
    """

    parameter: nn.Parameter
    along: int
    key: str
    value: Tensor
    dim: int
    is_copy: bool

    def renew(self, index: Tensor) -> None:
        """After the pairs at ``index`` were born anew: a moment of theirs is zero, a copy has their values."""
        dtype = self.value.dtype
        if not self.value.is_floating_point():
            _LOG.warning("the optimizer's %s is %s: no pair of it can be reset", self.key, dtype)
            return
        if self.is_copy:
            born = whole(self.parameter).index_select(self.along, index).to(dtype)
            change_whole(self.value, lambda value: _copy_at(value, self.dim, index, born))
        else:
            clear(self.value, self.dim, index)


def states_of(
    optimizer: torch.optim.Optimizer, parameter: nn.Parameter
) -> Iterator[dict[Any, Any]]:
    """The state of one parameter, in the optimizer and in those that it holds.

    Lookahead and ZeroRedundancyOptimizer are such wrappers, whose own state is empty, and accelerate's shows that of
    the optimizer inside as its own.
    """
    states = {id(one.state): one.state for one in _all_of(optimizer)}
    yield from (state[parameter] for state in states.values() if parameter in state)


def _all_of(optimizer: torch.optim.Optimizer) -> Iterator[torch.optim.Optimizer]:
    yield optimizer
    for value in vars(optimizer).values():
        if isinstance(value, torch.optim.Optimizer):
            yield from _all_of(value)


@torch.no_grad()
def remembered(
    optimizer: torch.optim.Optimizer, parameter: nn.Parameter, along: int
) -> Iterator[Remembered]:
    """All that the optimizer remembers of the pairs of a parameter; to be asked before they change.

    Args:
        optimizer: Trains the parameter.
        parameter: Of an adapter.
        along: The dimension along which its pairs lie.
    """
    states = states_of(optimizer, parameter)
    for name, value in chain.from_iterable(state.items() for state in states):
        key = str(name)
        if not isinstance(value, Tensor):
            continue
        if is_sharded(parameter) and not is_sharded(value):
            value = _as_part(value, parameter)
        dim = _pairs_of(key, value, parameter, along)
        if dim is not None:
            is_copy = _is_copy(key, value, parameter)
            yield Remembered(parameter, along, key, value, dim, is_copy)


def _as_part(value: Tensor, parameter: DTensor) -> Tensor:
    """What an optimizer that knows nothing of shards keeps for this process's part, as a part."""
    return as_part_of(parameter, value) if value.shape == parameter.to_local().shape else value


def _copy_at(value: Tensor, dim: int, index: Tensor, born: Tensor) -> None:
    value.index_copy_(dim, index.to(value.device), born.to(value.device))


def _pairs_of(key: str, value: Tensor, parameter: nn.Parameter, along: int) -> int | None:
    """Along which dimension of a state tensor the pairs lie; None if it has none for each.

    A factored moment (Adafactor's) is 1 along the dimension that it was averaged over, or lacks it. What all pairs
    share is kept.
    """
    shape = parameter.shape
    if value.ndim == 1 and len(shape) == 2 and key.endswith(("_row", "_col")):
        own = 0 if key.endswith("_row") else 1
        return 0 if own == along and len(value) == shape[own] else None
    if value.ndim != len(shape) or value.shape[along] != shape[along]:
        return None
    fits = all(own in (1, size) for own, size in zip(value.shape, shape, strict=True))
    return along if fits else None


def _is_copy(key: str, value: Tensor, parameter: nn.Parameter) -> bool:
    """By what it holds: a copy is nearer to the parameter than to zero; a moment has nothing to do with it."""
    if "master" in key:
        return True
    if key.startswith(_MOMENTS) or value.shape != parameter.shape or not value.is_floating_point():
        return False
    held = whole(value)
    ours = whole(parameter).detach().to(held)
    return bool(torch.dist(held, ours) < ours.norm() / 2)
