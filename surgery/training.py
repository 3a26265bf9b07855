"""What SRLoRA needs besides an ordinary training loop: one call between backward and step."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from surgery.adapters.importance import observe
from surgery.adapters.recompose import Recomposed
from surgery.adapters.widths import uncast
from surgery.errors import StateError
from surgery.groups import parameter_groups
from surgery.operations.adapted import Adapted
from surgery.operations.moments import remembered, states_of
from surgery.operations.recomposable import (
    check_agreed,
    check_kept,
    check_seated,
    check_trained,
    factors_of,
)
from surgery.operations.rollback import tensors_or_nothing
from surgery.operations.seats import Average, seats
from surgery.operations.sharding import clear, fully_sharded, gathered, whole

__all__ = ["Recomposer", "Recomposition", "parameter_groups"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recomposition:
    """What one call of :meth:`Recomposer.step` changed.

    Attributes:
        step: Number of the optimizer step, from 1.
        swapped: Adapter name -> number of pairs fused and born anew.
        exhausted: Adapters that had a switch due for the first time without directions left.
        places: Adapter name -> which pairs, in the order in which they took the next directions.
        rounding: The most that a frozen weight is off, relative to its norm, for being rounded to its dtype: all that
            a recomposition changes in what the model computes.
    """

    step: int
    swapped: dict[str, int]
    exhausted: tuple[str, ...] = ()
    places: dict[str, tuple[int, ...]] = field(default_factory=dict)
    rounding: float = 0.0

    @property
    def pairs(self) -> int:
        """Pairs swapped in all adapters together."""
        return sum(self.swapped.values())

    def __str__(self) -> str:
        text = f"step {self.step}: {self.pairs} pairs of {len(self.swapped)} adapters recomposed"
        if self.swapped:
            text += f", weights rounded by {self.rounding:.1e}"
        if self.exhausted:
            text += f"; no directions left in {', '.join(self.exhausted)}"
        return text


class Recomposer:
    """Switches the subspaces of SRLoRA adapters during training (arXiv 2505.12433).

    ``loss.backward(); recomposer.step(); optimizer.step()``, once an optimizer step, also under
    gradient accumulation. Importance is taken from the gradient of the loss: under a
    ``GradScaler`` call ``scaler.unscale_(optimizer)`` first, and clip gradients afterwards.

    An adapter has N = (target_rank - rank) / r' switches, one every total_steps / N steps, at most one a step.
    The one that falls on the last step is left out: it cannot change the function any more. One without a
    finite gradient since the switch before is left out too, with a warning. At a switch the swapped pairs
    lose their gradient and their optimizer state; nothing else does. Adam's step count stays, so their next
    update is (1 - beta1) / sqrt(1 - beta2), about 3 times the learning rate.

    Every process of a distributed training makes one, with the same total_steps, of a model that started from the
    same weights.

    Args:
        model: Carries the adapters; may be wrapped or sharded (DDP, FSDP2, torch.compile).
        optimizer: Trains them.
        total_steps: Optimizer steps of the whole training.
        averages: Copies of the adapted model that are averaged over its training (timm's ``ModelEmaV3``,
            torch's ``AveragedModel``), if there are any. They recompose with the model.

    Attributes:
        history: Every recomposition so far.
        steps: Calls of :meth:`step` so far.
        skipped: Steps whose gradients were not finite, or zero throughout, and not taken into the scores.

    Raises:
        StateError: If no adapter of the model recomposes, the optimizer does not train one of
            them, an adapter is split in a way that hides its pairs (FSDP1), total_steps is not
            positive, an average is no copy of the model, or the processes of a training disagree.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        total_steps: int,
        averages: nn.Module | Iterable[nn.Module] = (),
    ) -> None:
        if not isinstance(total_steps, int) or isinstance(total_steps, bool) or total_steps <= 0:
            raise StateError(
                f"total_steps {total_steps!r} is no number of steps",
                remedy="pass the optimizer steps of the whole training: epochs * batches per epoch",
            )
        self._sharded = fully_sharded(model)
        self._reshard()
        found = list(seats(model))
        self._adapters = {name: adapter for name, adapter, _ in found}
        self._owners = {name: owner for name, _, owner in found}
        self._optimizer, self.total_steps = optimizer, total_steps
        check_trained(self._adapters, optimizer)
        self._factors = {name: factors_of(adapter) for name, adapter in self._adapters.items()}
        every = [averages] if isinstance(averages, nn.Module) else averages
        self._averages = [Average.of(average, self._adapters) for average in every]
        most = max(adapter.switches for adapter in self._adapters.values())
        if most >= total_steps:
            _LOG.warning(
                "%d switches do not fit into %d steps: at most one a step", most, total_steps
            )
        check_agreed(model, total_steps, self._adapters, self._owners)
        self.history: list[Recomposition] = []
        self.steps = self.skipped = 0
        self._exhausted: set[str] = set()

    @uncast()
    def step(self) -> Recomposition | None:
        """Observe the gradients and, where it is time, recompose.

        If a recomposition fails (memory), model and optimizer are as before, and the call can be
        repeated; but not where the model is sharded, for the other processes wait for this one.

        Returns:
            What was recomposed, or None if nothing was.

        Raises:
            StateError: If no adapter has a gradient, before backward or after ``zero_grad``, or the adapters
                were folded, taken out or replaced meanwhile (sharded, loaded with assign=True).
        """
        check_seated(self._owners)
        self._reshard()
        check_kept(self._adapters, self._factors)
        self._check_end()
        if all(parameter.grad is None for parameter in chain(*self._factors.values())):
            raise StateError(
                "no adapter has a gradient",
                where=next(iter(self._adapters)),
                remedy="call loss.backward(), recomposer.step(), optimizer.step() in this order",
            )
        due = [name for name, adapter in self._adapters.items() if self._is_due(adapter)]
        owners = dict.fromkeys(each[name] for each in self._all_owners() for name in due)
        with tensors_or_nothing(self._tensors(due), owners):
            self._observe()
            report = self._recompose(due) if due else None
        self.steps += 1
        return report

    def state_dict(self) -> dict[str, Any]:
        """Where the schedule stands; scores, directions and ledgers are buffers of the adapters."""
        return {
            "steps": self.steps,
            "total_steps": self.total_steps,
            "skipped": self.skipped,
            "exhausted": sorted(self._exhausted),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken, to its ``total_steps``; load the model's and the optimizer's state too."""
        if state["total_steps"] != self.total_steps:
            _LOG.warning(
                "the schedule goes on to step %s, as it began, and not to %s",
                state["total_steps"], self.total_steps,
            )  # fmt: skip
        self.steps, self.total_steps = int(state["steps"]), int(state["total_steps"])
        self.skipped, self._exhausted = int(state["skipped"]), set(state["exhausted"])

    def _reshard(self) -> None:
        for module in self._sharded:
            module.reshard()

    def _check_end(self) -> None:
        if self.steps == self.total_steps:
            _LOG.warning(
                "step %d is beyond total_steps, and all switches are behind: is step() called once an "
                "optimizer step?",
                self.steps + 1,
            )

    def _observe(self) -> None:
        seen = [
            (scores, whole(weight), whole(gradient))
            for adapter in self._adapters.values()
            for scores, weight, gradient in adapter.observed()
        ]
        gradients = [gradient for _, _, gradient in seen]
        norm = torch.nn.utils.get_total_norm(gradients, float("inf"))
        # Clipping by an infinite norm, as one gradient of a head can make it, leaves zeros.
        if not norm.isfinite() or norm == 0:
            self.skipped += 1
            what = "all zero" if norm == 0 else "not finite"
            _LOG.warning("step %d: gradients are %s, importance not updated", self.steps + 1, what)
            return
        observe(seen)

    def _is_due(self, adapter: Recomposed) -> bool:
        """Whether step k total_steps / N, rounded up, is the one after ``steps`` for some k."""
        before, now = (
            n * adapter.switches // self.total_steps for n in (self.steps, self.steps + 1)
        )
        return before < now and self.steps + 1 < self.total_steps

    def _recompose(self, due: list[str]) -> Recomposition | None:
        places = {name: self._switch(name) for name in due}
        swapped = {name: len(pairs) for name, pairs in places.items()}
        still = {name for name, pairs in swapped.items() if pairs == 0}
        unseen = {name for name in still if self._adapters[name].switches_left}
        exhausted = still - unseen - self._exhausted
        if unseen:
            _LOG.warning(
                "step %d: no gradient was observed since the last switch, nothing moves on in %s",
                self.steps + 1, ", ".join(sorted(unseen)),
            )  # fmt: skip
        moved = [name for name in due if swapped[name]]
        for owner in dict.fromkeys(each[name] for each in self._all_owners() for name in moved):
            owner.refresh_base()
        corrected = dict.fromkeys(self._owners[name] for name in moved)
        rounding = max((owner.rounding() for owner in corrected), default=0.0)
        self._exhausted |= exhausted
        done = {name: pairs for name, pairs in swapped.items() if pairs}
        if not done and not exhausted:
            return None
        report = Recomposition(self.steps + 1, done, tuple(sorted(exhausted)), places, rounding)
        self.history.append(report)
        _LOG.info("%s", report)
        return report

    @torch.no_grad()
    def _switch(self, name: str) -> tuple[int, ...]:
        """Recompose one adapter, and forget gradient and optimizer state of the swapped pairs."""
        adapter = self._adapters[name]
        if not adapter.scores().any():  # nothing tells the weak from the strong
            return ()
        for average in self._averages:
            average.check(name, adapter)
        pairs = adapter.pairs().values()
        held = [one for pair in pairs for one in remembered(self._optimizer, *pair)]
        with gathered(adapter):
            index = adapter.recompose()
        if len(index):
            for average in self._averages:
                average.follow(name, index)
            for parameter, dim in pairs:
                if parameter.grad is not None:
                    clear(parameter.grad, dim, index)
            for one in held:
                one.renew(index)
        return tuple(index.tolist())

    def _tensors(self, due: list[str]) -> Iterator[Tensor]:
        """What a recomposition writes to, but for the corrected weights, which follow from it."""
        for name in due:
            for average in self._averages:
                yield from average.adapters[name].state_dict(keep_vars=True).values()
            yield from self._adapters[name].state_dict(keep_vars=True).values()
            for parameter, _ in self._adapters[name].pairs().values():
                states = states_of(self._optimizer, parameter)
                held = chain([parameter.grad], *(state.values() for state in states))
                yield from (value for value in held if isinstance(value, Tensor))

    def _all_owners(self) -> list[dict[str, Adapted]]:
        return [self._owners, *(average.owners for average in self._averages)]
