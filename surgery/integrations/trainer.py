"""SRLoRA in a transformers ``Trainer``."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from surgery.training import Recomposer, Recomposition


class RecomposerCallback(TrainerCallback, ExportableState):  # type: ignore[misc]
    """Recomposes between backward and step: ``Trainer(..., callbacks=[RecomposerCallback()])``.

    The schedule spans the Trainer's own ``max_steps`` and follows its ``global_step``, so a run
    resumed from a checkpoint goes on where it stopped: scores, directions and ledgers travel in the
    model's state dict. One that is resumed with other ``max_steps`` keeps the schedule that it began with, and
    the log says so. The Trainer clips gradients first; importance then sees each step's gradients
    times one common factor. In fp16 with ``max_grad_norm=0`` it sees them times the loss scale, too.

    Attributes:
        recomposer: Made when training begins; its ``history`` tells what was swapped when.
    """

    def __init__(self) -> None:
        self.recomposer: Recomposer | None = None

    @property
    def history(self) -> list[Recomposition]:
        """Every recomposition of the present training."""
        return [] if self.recomposer is None else self.recomposer.history

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        **rest: Any,
    ) -> None:
        """Make the recomposer.

        Raises:
            StateError: If no adapter of the model recomposes, or the optimizer trains none of them.
        """
        assert model is not None and optimizer is not None
        self.recomposer = Recomposer(model, optimizer, total_steps=state.max_steps)
        saved = state.stateful_callbacks.get(type(self).__name__, {}).get("attributes", {})
        if saved and state.global_step:
            self.recomposer.load_state_dict(saved)
        self.recomposer.steps = state.global_step

    def state(self) -> dict[str, Any]:
        """What goes into a checkpoint of the Trainer: the schedule that the training began with."""
        attributes = {} if self.recomposer is None else self.recomposer.state_dict()
        return {"args": {}, "attributes": attributes}

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Observe and, where it is time, recompose."""
        assert self.recomposer is not None
        self.recomposer.step()
