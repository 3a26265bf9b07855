"""transformers' ``Trainer`` around an adapted model of any library.

Why this road and not a loop over accelerate: the Trainer is that loop, kept by others: accumulation,
clipping, precision, schedules, evaluation, the best model, early stopping, processes, and a resume that
skips what was seen. It drives timm models as well; only what is ours is overridden here.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import timm.optim
import torch
from torch import Tensor, nn
from transformers import (
    EvalPrediction,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from surgery import checkpoint
from surgery.errors import RunError, StateError, SurgeryError, told_at_length
from surgery.groups import parameter_groups
from surgery.runs import checkpoints
from surgery.runs.feed import Feed, Feeding
from surgery.runs.loss import cross_entropy, logits_of
from surgery.runs.schema import RunSpec
from surgery.runs.texts import Batch

ADAPTER = "adapter.safetensors"


class AdapterTrainer(Trainer):  # type: ignore[misc]
    """Trains adapters and what else a policy left trainable.

    A checkpoint holds an adapter file and no base weights, and a manifest once it is complete.

    Args:
        model: An adapted model.
        spec: What the training file says.
        feeding: How the model is fed.
        **options: Those of ``Trainer``.
    """

    def __init__(self, model: nn.Module, spec: RunSpec, feeding: Feeding, **options: Any) -> None:
        self.spec, self.feeding = spec, feeding
        super().__init__(
            model,
            data_collator=feeding.collate,
            train_dataset=feeding.train,
            eval_dataset=feeding.validation,
            compute_metrics=None if feeding.shifted else accuracy,
            preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),
            **options,
        )
        self.model_accepts_loss_kwargs = False  # compute_loss below takes the mean of each batch
        self.remove_callback(PrinterCallback)
        self.add_callback(Epochs(feeding.train))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """timm's optimizer over the groups that adapters want."""
        optimizer: torch.optim.Optimizer | None = getattr(self, "optimizer", None)
        if optimizer is None:
            given = self.spec.optimizer
            groups = parameter_groups(self.model, lr=given.lr, weight_decay=given.weight_decay)
            try:
                optimizer = timm.optim.create_optimizer_v2(
                    groups, opt=given.name, lr=given.lr, weight_decay=0.0, **given.options
                )
            except TypeError as error:
                raise RunError(
                    f"the optimizer {given.name!r} does not take these options",
                    where="optimizer.options",
                    why=str(error),
                    remedy="leave out what it does not know",
                ) from error
            self.optimizer = optimizer
        assert optimizer is not None
        return optimizer

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Cross-entropy of the logits, whichever library the model is from."""
        logits, labels = logits_of(model, inputs)
        smoothing = self.spec.schedule.label_smoothing if self.model.training else 0.0
        loss = cross_entropy(logits, labels, shifted=self.feeding.shifted, smoothing=smoothing)
        return (loss, {"loss": loss, "logits": logits}) if return_outputs else loss

    def training_step(self, *args: Any, **options: Any) -> Tensor:
        """The Trainer's, but a loss that is not finite ends the training.

        Raises:
            StateError: If it is not finite.
        """
        loss: Tensor = super().training_step(*args, **options)
        if not loss.isfinite():
            raise StateError(
                f"the training diverged: the loss is {loss.item()}",
                where=f"step {self.state.global_step + 1}",
                remedy="lower optimizer.lr; --resume goes on from the last checkpoint",
            )
        return loss

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.save(self.accelerator.unwrap_model(self.model), folder / ADAPTER)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        checkpoint.load(self.model, Path(resume_from_checkpoint) / ADAPTER)

    def _load_best_model(self) -> None:
        name = f"{checkpoints.PREFIX}{self.state.best_global_step}"
        checkpoint.load(self.model, Path(self.args.output_dir) / name / ADAPTER)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """The Trainer's, sealed once it is complete; one that fails leaves nothing behind."""
        name = f"{checkpoints.PREFIX}{self.state.global_step}"
        folder = Path(self.args.output_dir) / name
        (folder / checkpoints.MANIFEST).unlink(missing_ok=True)
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                checkpoints.seal(folder)
            self.accelerator.wait_for_everyone()
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, OSError | RuntimeError | SurgeryError):  # torch.save, safetensors
                raise _unsaved(folder, error) from error
            raise


class Epochs(TrainerCallback):  # type: ignore[misc]
    """Tells the training samples their epoch.

    accelerate's loader does so too, but not when it skips what was seen or deals batches to several processes.

    Args:
        feed: The samples.
    """

    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Before the loader's workers start."""
        self._feed.set_epoch(int(state.epoch or 0))


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Share of the samples whose class was found."""
    return {"accuracy": float((prediction.predictions == prediction.label_ids).mean())}


def _unsaved(folder: Path, error: Exception) -> RunError:
    return RunError(
        "a checkpoint cannot be written",
        where=str(folder),
        why=told_at_length(error),
        remedy="make room; --resume then goes on from the checkpoint before it",
    )
