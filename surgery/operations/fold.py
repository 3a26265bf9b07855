"""Writing the adapters into the base weights: one sum in float64, one rounding, and what it cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Group
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from surgery.anatomy.capture import unchanged
from surgery.anatomy.inputs import ExampleInputs, example_inputs
from surgery.errors import StateError
from surgery.operations import render
from surgery.operations.adapted import Adapted, adapted_modules
from surgery.operations.plan import Operation
from surgery.operations.rows import as_matrix, as_weight, take
from surgery.operations.state import adapted_model, release


@dataclass(frozen=True)
class FoldedProjection:
    """What folding one adapter cost. Norms are Frobenius norms over the projection's rows.

    Attributes:
        name: Weight and slot.
        role: What the projection does.
        drift: |folded - exact| / |exact|: the rounding, relative to the weight.
        update_error: |folded - exact| / |exact - original|: the rounding, relative to what was learned.
    """

    name: str
    role: str
    drift: float
    update_error: float


@dataclass(frozen=True)
class FoldReport:
    """What ``fold`` did.

    Attributes:
        projections: One entry for each adapter.
        function_drift: max |y_folded - y_adapted| / max |y_adapted| over the outputs, in eval mode, if check
            inputs were given.
        notes: What a reader should know.
    """

    projections: tuple[FoldedProjection, ...]
    function_drift: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def drift(self) -> float:
        """The worst drift of a weight."""
        return max((p.drift for p in self.projections), default=0.0)

    def to_dict(self) -> dict[str, Any]:
        """``{"projections": [{"name", "role", "drift", "update_error"}], "drift", "function_drift", "notes"}``."""
        return {
            "projections": [asdict(p) for p in self.projections],
            "drift": self.drift,
            "function_drift": self.function_drift,
            "notes": list(self.notes),
        }

    def __rich__(self) -> Group:
        return render.fold_table(self)

    def __str__(self) -> str:
        return render.as_text(self)


@torch.no_grad()
def fold(model: nn.Module, *, check_inputs: Any = None) -> FoldReport:
    """Write the adapters into the base weights, in place, and give back the plain model.

    Each weight becomes round(original + corrections + deltas), summed in float64 and rounded once to its
    dtype. Classes and state-dict keys are the original ones, ``requires_grad`` is what it was before
    ``apply``; what else was trained stays as trained. Every weight is computed and checked before the first
    is written.

    Args:
        model: An adapted model.
        check_inputs: Inputs (a tensor, a tuple or a dict) on which the adapted and the folded model are
            compared.

    Raises:
        StateError: Nothing is applied, or a folded weight would not be finite. The model is untouched.
    """
    model, record = adapted_model(model, "fold")
    inputs = None if check_inputs is None else example_inputs(model, check_inputs)
    before = _outputs(model, inputs)
    operations = {operation.name: operation for operation in record.plan.operations}
    folded, costs = [], []
    for path, module in adapted_modules(model):
        for name, weight, cost in _fold_module(path, module, operations):
            folded.append((module.base(name), weight))
            costs += cost
    for parameter, weight in folded:
        parameter.copy_(weight)
    release(model, record)
    drift = None if inputs is None else _difference(_outputs(model, inputs), before)
    return FoldReport(tuple(costs), drift, _notes(costs))


def _fold_module(
    path: str, module: Adapted, operations: dict[str, Operation]
) -> Iterator[tuple[str, Tensor, list[FoldedProjection]]]:
    """Name, folded weight and costs, weight by weight."""
    for name, graft in module.grafts():
        live = module.base(name)
        original = live if graft.original is None else graft.original
        exact = graft.exact(live)
        rounded = exact.to(live.dtype)
        key = ".".join(filter(None, (path, name)))
        _check_finite(key, exact, rounded)
        base = as_matrix(original, graft.layout).to(exact)
        costs = [
            _cost(operations[f"{key}:{slot}"], exact, rounded.to(exact), base)
            for slot, _ in graft.adapters()
        ]
        yield name, as_weight(rounded, graft.layout, live.shape), costs


def _cost(operation: Operation, exact: Tensor, rounded: Tensor, base: Tensor) -> FoldedProjection:
    rows = operation.projection.rows
    own, error = take(exact, rows), float(take(rounded - exact, rows).norm())
    size, update = float(own.norm()), float((own - take(base, rows)).norm())
    return FoldedProjection(
        name=operation.name,
        role=str(operation.projection.role),
        drift=error / size if size else 0.0,
        update_error=error / update if update else 0.0,
    )


def _check_finite(name: str, exact: Tensor, rounded: Tensor) -> None:
    if rounded.isfinite().all():
        return
    overflow = bool(exact.isfinite().all())
    raise StateError(
        f"{name} cannot be folded",
        where=name,
        why=f"the sum is beyond the range of {rounded.dtype}"
        if overflow
        else "it is not finite: training diverged",
        remedy="fold in a wider dtype: model.float()"
        if overflow
        else "load an earlier adapter, or surgery.undo(model)",
    )


def _outputs(model: nn.Module, inputs: ExampleInputs | None) -> list[Tensor]:
    if inputs is None:
        return []
    with unchanged(model):
        leaves = tree_leaves(model(*inputs.args, **inputs.kwargs))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _difference(folded: list[Tensor], adapted: list[Tensor]) -> float:
    pairs = zip(folded, adapted, strict=True)
    return max(
        (float((f - a).abs().max() / a.abs().max().clamp_min(1e-30)) for f, a in pairs), default=0.0
    )


def _notes(costs: list[FoldedProjection]) -> tuple[str, ...]:
    lost = [cost for cost in costs if cost.update_error > 0.1]
    if not lost:
        return ()
    worst = max(lost, key=lambda cost: cost.update_error)
    return (
        f"rounding took more than a tenth of the update in {len(lost)} projections "
        f"({worst.update_error:.0%} in {worst.name}): fold in float32 to keep it",
    )
