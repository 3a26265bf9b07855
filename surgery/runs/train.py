"""One training, from an opened data set and a plain model to a run folder."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import TrainerCallback, TrainingArguments

import policies
from policies import Policy
from surgery.adapters.recompose import Recomposed
from surgery.checkpoint import save
from surgery.errors import RunError
from surgery.integrations.trainer import RecomposerCallback
from surgery.operations.apply import apply
from surgery.operations.summary import summary
from surgery.runs import checkpoints, training_file
from surgery.runs.arguments import training_arguments
from surgery.runs.feed import Feeding, feed
from surgery.runs.folder import RunFolder
from surgery.runs.measure import policy_for
from surgery.runs.progress import ProgressBar
from surgery.runs.samples import Data, Kind
from surgery.runs.schema import RunSpec
from surgery.runs.stopping import EarlyStop, Interrupt
from surgery.runs.trainer import AdapterTrainer
from surgery.runs.watch import Watch


@dataclass(frozen=True)
class Run:
    """A training that can be carried out.

    Attributes:
        spec: What the training file says.
        data: What is learned from.
        model: A plain model that fits the data; adapted in place.
    """

    spec: RunSpec
    data: Data
    model: nn.Module

    def train(self, *, resume: bool = False) -> dict[str, Any]:
        """Apply the policy, train, and write the run folder.

        Args:
            resume: Go on from the last complete checkpoint, if there is one. The result is that of a
                run that was never stopped, bit for bit where the kernels are deterministic.

        Returns:
            What ``metrics.json`` holds.

        Raises:
            RunError: If the data do not fit, the folder cannot be written, or the run to be resumed was
                another.
            PolicyError, AnatomyError, PlanError, CaptureError: As ``surgery.apply``.
            StateError: If the training diverged.
            KeyboardInterrupt: On a signal, after a checkpoint was written.
        """
        _check_installed(self.spec)
        folder = RunFolder(Path(self.spec.output.folder).expanduser())
        start = _starting_point(folder, self.spec) if resume else None
        feeding = feed(self.data, self.model, self.spec)
        folder.make()
        arguments = training_arguments(self.spec, folder, language=feeding.shifted)
        policy = self._policy(feeding, arguments.device, folder if start else None)
        apply(self.model, policy, seed=self.spec.seed)
        self.model.train()
        hands = Hands.of(self.model, self.spec)
        trainer = _trainer(self.model, self.spec, feeding, arguments, hands)
        if trainer.is_world_process_zero():
            checkpoints.sweep(folder.checkpoints)
            folder.write(folder.config, training_file.write(self.spec))
            folder.write(folder.policy, str(policy))
            folder.write(folder.labels, list(self.data.labels))
        with hands.interrupt.listening(), hands.progress:
            trainer.train(resume_from_checkpoint=str(start) if start else None)
        if hands.interrupt.asked:
            raise KeyboardInterrupt
        return _write(trainer, hands.watch, folder, self.data.kind)

    def _policy(self, feeding: Feeding, device: torch.device, before: RunFolder | None) -> Policy:
        """What is applied, the same in every process; a resumed run keeps what it measured."""
        if before is not None and self.spec.policy.measured:
            return policies.get(before.policy)
        from accelerate.utils import broadcast_object_list

        policy = policy_for(self.model, self.spec, feeding, device)
        (shared,) = broadcast_object_list([policy.to_dict()])
        return policies.get(shared)


@dataclass(frozen=True)
class Hands:
    """The callbacks of a training, in their order."""

    progress: ProgressBar
    watch: Watch
    others: tuple[TrainerCallback, ...]
    interrupt: Interrupt

    @classmethod
    def of(cls, model: nn.Module, spec: RunSpec) -> Hands:
        """Those that an adapted model and a training file ask for."""
        recomposes = any(isinstance(module, Recomposed) for module in model.modules())
        recomposer = RecomposerCallback() if recomposes else None
        patience = spec.schedule.early_stop
        optional = (recomposer, EarlyStop(patience) if patience else None, _tensorboard(spec))
        others = tuple(callback for callback in optional if callback is not None)
        return cls(ProgressBar(), Watch(recomposer), others, Interrupt())

    def all(self) -> list[TrainerCallback]:
        """As the Trainer takes them."""
        return [self.progress, self.watch, *self.others, self.interrupt]


def _starting_point(folder: RunFolder, spec: RunSpec) -> Path | None:
    """The checkpoint to go on from.

    Raises:
        RunError: If it is broken, or the run in the folder was another.
    """
    start = checkpoints.latest(folder.checkpoints)
    if start is None:
        return None
    before, _ = training_file.load(folder.config)
    ours, theirs = (s.model_dump(mode="json", exclude={"output"}) for s in (spec, before))
    changed = [key for key in ours if ours[key] != theirs[key]]
    if changed:
        raise RunError(
            "the run in this folder was another",
            where=str(folder.config),
            why=f"{', '.join(changed)} changed since it began",
            remedy="restore the training file, name another output.folder, or begin anew with --overwrite",
        )
    return start


def _trainer(
    model: nn.Module,
    spec: RunSpec,
    feeding: Feeding,
    arguments: TrainingArguments,
    hands: Hands,
) -> AdapterTrainer:
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    return AdapterTrainer(model, spec, feeding, args=arguments, callbacks=hands.all())


def _tensorboard(spec: RunSpec) -> TrainerCallback | None:
    if not spec.output.tensorboard:
        return None
    from transformers.integrations import TensorBoardCallback

    callback = TensorBoardCallback()
    callback.logging_dir = str(RunFolder(Path(spec.output.folder).expanduser()).events)
    return callback


def _check_installed(spec: RunSpec) -> None:
    wanted = ["accelerate", "matplotlib", *(["tensorboard"] if spec.output.tensorboard else [])]
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    if missing:
        raise RunError(
            f"training needs {' and '.join(missing)}",
            why="not installed",
            remedy="pip install 'model-surgery[train]' (output.tensorboard: false does without tensorboard)",
        )


def _write(trainer: AdapterTrainer, watch: Watch, folder: RunFolder, kind: Kind) -> dict[str, Any]:
    """Write the results; the metrics come last, when all else is there."""
    metrics = {"kind": kind} | _metrics(trainer)
    if trainer.is_world_process_zero():
        save(trainer.accelerator.unwrap_model(trainer.model), folder.adapter)
        folder.write(folder.layers, watch.to_dict())
        folder.write(folder.metrics, metrics)
    return metrics


def _metrics(trainer: AdapterTrainer) -> dict[str, Any]:
    """``metrics.json``: ``{"kind", "steps", "epochs", "validation": {...}, "kept_step", "trainable", ...}``."""
    state, counted = trainer.state, summary(trainer.accelerator.unwrap_model(trainer.model))
    best = state.best_global_step if trainer.args.load_best_model_at_end else None
    kept = best or state.global_step
    evaluations = [_timeless(entry) for entry in state.log_history if "eval_loss" in entry]
    final = next((entry for entry in evaluations if entry["step"] == kept), None)
    final = final or trainer.evaluate()
    names = {"eval_loss": "loss", "eval_accuracy": "accuracy"}
    return {
        "steps": state.global_step,
        "planned_steps": state.max_steps,
        "epochs": state.epoch,
        "validation": {short: final[name] for name, short in names.items() if name in final},
        "kept_step": kept,
        "trainable": counted.trainable,
        "total": counted.total,
        "processes": trainer.args.world_size,
        "curve": [entry for entry in state.log_history if "loss" in entry],
        "evaluations": evaluations,
    }


def _timeless(entry: dict[str, float]) -> dict[str, float]:
    """Without what differs from machine to machine."""
    return {key: value for key, value in entry.items() if not key.endswith(("runtime", "_second"))}
