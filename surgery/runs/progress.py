"""How far a training is: a bar on a terminal, a line an evaluation elsewhere."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class ProgressBar(TrainerCallback):  # type: ignore[misc]
    """Shows step, loss and time left on stderr; only the first process does.

    A context: at its end the bar is gone, however the training ended.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task("training", note="")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Begin where the training does."""
        if state.is_world_process_zero:
            self._progress.update(self._task, total=state.max_steps, completed=state.global_step)
            self._progress.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """One step on."""
        self._progress.update(self._task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **rest: Any,
    ) -> None:
        """The loss goes into the bar, an evaluation onto a line of its own."""
        logs = logs or {}
        if "loss" in logs:
            self._progress.update(self._task, note=f"loss {logs['loss']:.4f}")
        if "eval_loss" in logs and state.is_world_process_zero:
            self._console.print(evaluation_line(state.global_step, logs), highlight=False)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *failure: object) -> None:
        self._progress.stop()


def evaluation_line(step: int, logs: dict[str, float]) -> str:
    """``step 40: loss 0.31, accuracy 92.1 %``."""
    text = f"step {step}: loss {logs['eval_loss']:.4f}"
    if "eval_accuracy" in logs:
        text += f", accuracy {logs['eval_accuracy']:.1%}"
    return text
