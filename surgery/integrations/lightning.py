"""SRLoRA in a Lightning ``Trainer``."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from surgery.errors import StateError
from surgery.training import Recomposer, Recomposition


class RecomposerCallback(Callback):
    """Recomposes between backward and step: ``Trainer(callbacks=[RecomposerCallback()])``.

    The schedule spans the Trainer's ``estimated_stepping_batches``. The callback's state is part of
    Lightning's checkpoints; scores, directions and ledgers travel in the module's state dict.

    Attributes:
        recomposer: Made when fitting begins; its ``history`` tells what was swapped when.
    """

    def __init__(self) -> None:
        self.recomposer: Recomposer | None = None
        self._resumed: dict[str, Any] | None = None

    @property
    def history(self) -> list[Recomposition]:
        """Every recomposition of the present training."""
        return [] if self.recomposer is None else self.recomposer.history

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the recomposer.

        Raises:
            StateError: If there is no end to the training or not one optimizer, no adapter recomposes,
                or the optimizer trains none of them.
        """
        total = trainer.estimated_stepping_batches
        if len(trainer.optimizers) != 1 or not float(total).is_integer():
            raise StateError(
                f"{len(trainer.optimizers)} optimizers and {total} steps",
                why="recomposition is spread over the steps of one optimizer",
                remedy="train with one optimizer, and pass max_steps or max_epochs to the Trainer",
            )
        self.recomposer = Recomposer(pl_module, trainer.optimizers[0], total_steps=int(total))
        if self._resumed is not None:
            self.recomposer.load_state_dict(self._resumed)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Observe and, where it is time, recompose."""
        assert self.recomposer is not None
        self.recomposer.step()

    def state_dict(self) -> dict[str, Any]:
        """Where the schedule stands."""
        return {} if self.recomposer is None else self.recomposer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until training starts."""
        self._resumed = state_dict or None
