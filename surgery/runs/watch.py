"""What every adapter does over time: how far it moves, what SRLoRA's pairs are worth and stand on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from surgery.adapters.base import Adapter
from surgery.adapters.recompose import Recomposed
from surgery.adapters.symlora import SymLoRA
from surgery.integrations.trainer import RecomposerCallback
from surgery.operations.adapted import Adapted
from surgery.operations.plan import Operation
from surgery.operations.rows import as_matrix, take
from surgery.operations.state import adapted_model

SNAPSHOTS = 40
"""Looks at the adapters in a whole training."""


class Watch(TrainerCallback, ExportableState):  # type: ignore[misc]
    """Looks at the adapters now and then; what it saw travels in the checkpoints.

    It stands before the recomposer in the list of callbacks: scores are those that the next
    recomposition decides by.

    Args:
        recomposer: The callback that recomposes, if an adapter does.
    """

    def __init__(self, recomposer: RecomposerCallback | None = None) -> None:
        self._recomposer, self._counted = recomposer, 0
        self.steps: list[int] = []
        self.layers: dict[str, dict[str, Any]] = {}

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **rest: Any,
    ) -> None:
        """Take up what the checkpoint saw, or begin."""
        assert model is not None
        saved = state.stateful_callbacks[type(self).__name__]["attributes"]
        self.steps, self.layers, self._counted = saved["steps"], saved["layers"], 0
        if not self.layers:
            self.layers = {o.name: _described(o, model) for o in _operations(model)}

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **rest: Any,
    ) -> None:
        """Look, if it is time."""
        assert model is not None
        if state.global_step % max(1, state.max_steps // SNAPSHOTS) == 0:
            self._look(model, state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Note which pairs were born anew."""
        if self._recomposer is None:
            return
        for done in self._recomposer.history[self._counted :]:
            for path in done.swapped:
                places = list(done.places[path])
                self._by_path()[path]["switches"].append([done.step, places])
        self._counted = len(self._recomposer.history)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **rest: Any,
    ) -> None:
        """The last look, at the weights that are kept."""
        assert model is not None
        if not self.steps or self.steps[-1] < state.global_step:
            self._look(model, state.global_step)

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"args": {}, "attributes": {"steps": self.steps, "layers": self.layers}}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``layers.json``.

        ``{"steps": [...], "layers": {name: {"path", "role", "layer", "kind", "rank", "base_norm",
        "update_norm": [a number a step], "scores": [(r,) a step], "eigenvalues": [(r,) a step],
        "switches": [[step, pairs]]}}}``; norms are Frobenius norms.
        """
        return {"steps": self.steps, "layers": self.layers}

    def _by_path(self) -> dict[str, dict[str, Any]]:
        return {layer["path"]: layer for layer in self.layers.values()}

    @torch.no_grad()
    def _look(self, model: nn.Module, step: int) -> None:
        self.steps.append(step)
        for operation in _operations(model):
            adapter, layer = _adapter(model, operation), self.layers[operation.name]
            layer["update_norm"].append(float(update_norm(adapter)))
            if isinstance(adapter, Recomposed):
                layer["scores"].append(adapter.scores().tolist())
            if isinstance(adapter, SymLoRA):
                layer["eigenvalues"].append(adapter.eigenvalues().tolist())


def update_norm(adapter: Adapter) -> Tensor:
    """``||W - W0||_F`` of one projection from its factors alone, a float64 scalar.

    ``||B A||^2`` is the sum of the entries of ``B^T B`` times those of ``A A^T``, with what was fused and
    subtracted among the pairs.
    """
    b, a = (factor.double() for factor in adapter.factors())
    moved = adapter.correction()
    if moved is not None:
        b, a = torch.cat([b, moved[0].double()], 1), torch.cat([a, moved[1].double()], 0)
    return ((b.T @ b) * (a @ a.T)).sum().clamp_min(0).sqrt()


def _operations(model: nn.Module) -> tuple[Operation, ...]:
    return adapted_model(model, "watch")[1].plan.operations


def _adapter(model: nn.Module, operation: Operation) -> Adapter:
    adapter = model.get_submodule(operation.path)
    assert isinstance(adapter, Adapter)
    return adapter


def _described(operation: Operation, model: nn.Module) -> dict[str, Any]:
    projection = operation.projection
    owner = model.get_submodule(projection.module)
    assert isinstance(owner, Adapted)
    weight = as_matrix(owner.original(projection.parameter), projection.layout)
    return {
        "path": operation.path,
        "role": str(projection.role),
        "layer": projection.layer,
        "kind": operation.adapter.kind,
        "rank": operation.adapter.rank,
        "base_norm": float(take(weight, projection.rows).double().norm()),
        "update_norm": [],
        "scores": [],
        "eigenvalues": [],
        "switches": [],
    }
