"""Ctrl-C and early stopping: a training ends between two steps, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from transformers import (
    EarlyStoppingCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt(TrainerCallback):  # type: ignore[misc]
    """The first signal ends the training after the present step; a second one ends it at once.

    Attributes:
        asked: Whether a signal came.
    """

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM; in another thread than the main one nothing is taken."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Stop here if asked, all processes at the same step; save, unless the epoch's end does so."""
        self.asked = _anywhere(self.asked, args)
        if self.asked:
            control.should_training_stop = True
            control.should_save = control.should_save or not _at_end_of_epoch(state)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """An epoch that was broken off is not evaluated: an unstopped run would not do so here."""
        if self.asked and not _at_end_of_epoch(state):
            control.should_evaluate = control.should_save = False


class EarlyStop(EarlyStoppingCallback):  # type: ignore[misc]
    """transformers', with a patience that survives a resume."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Take up the count of the checkpoint."""
        super().on_train_begin(args, state, control, **rest)
        saved = state.stateful_callbacks.get(type(self).__name__, {}).get("attributes", {})
        for name, value in saved.items():
            setattr(self, name, value)


def _at_end_of_epoch(state: TrainerState) -> bool:
    return float(state.epoch or 0).is_integer()


def _anywhere(asked: bool, args: TrainingArguments) -> bool:
    if args.world_size == 1:
        return asked
    flag = torch.tensor(int(asked), device=args.device)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag)
