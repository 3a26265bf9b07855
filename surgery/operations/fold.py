"""Writing the adapters into the base weights: one sum in float64, one rounding, its cost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Group
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from surgery.anatomy.capture import unchanged
from surgery.anatomy.inputs import ExampleInputs, example_inputs
from surgery.anatomy.types import Rows
from surgery.errors import StateError
from surgery.operations import render
from surgery.operations.adapted import Adapted
from surgery.operations.plan import Operation, Plan
from surgery.operations.rollback import replaced_or_nothing
from surgery.operations.rounding import rounded
from surgery.operations.rows import as_matrix, as_weight, take
from surgery.operations.state import adapted_model, release


@dataclass(frozen=True)
class FoldedProjection:
    """What folding one adapter cost. Norms are Frobenius norms over the projection's rows.

    Attributes:
        name: Weight and slot.
        role: What the projection does.
        drift: |folded - exact| / |exact|: the rounding, relative to the weight.
        update_error: |folded - exact| / |exact - original|: the rounding, relative to what was
            learned.
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
        function_drift: max |y_folded - y_adapted| / max |y_adapted| over the outputs, in eval mode,
            if check inputs were given.
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
        """Plain data with stable keys.

        ``{"projections": [{"name", "role", "drift", "update_error"}], "drift", "function_drift",
        "notes"}``
        """
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

    Each weight becomes round(original + corrections + deltas), summed in float64 and rounded once
    to its dtype. Classes and state-dict keys are the original ones, ``requires_grad`` is what it
    was before ``apply``; what else was trained stays as trained. Every weight is computed and
    checked before the first is written, and whatever fails is taken back, the check included.

    Args:
        model: An adapted model.
        check_inputs: Inputs (a tensor, a tuple or a dict) on which the adapted and the folded model
            are compared.

    Raises:
        StateError: Nothing is applied, or a folded weight would not be finite. The model is
            untouched.
    """
    model, record = adapted_model(model, "fold")
    inputs = None if check_inputs is None else example_inputs(model, check_inputs)
    before = _outputs(model, inputs)
    costs: list[FoldedProjection] = []
    folded: dict[nn.Parameter, Tensor] = {}
    for each in _sums(model, record.plan):
        weight, value, own = each.folded()
        folded[weight] = value
        costs += own
    with replaced_or_nothing(model, record, folded):
        release(model, record)
        drift = None if inputs is None else _difference(_outputs(model, inputs), before)
    return FoldReport(tuple(costs), drift, _notes(costs))


@dataclass(frozen=True)
class _Sum:
    """One adapted weight and the operations on it."""

    module: Adapted
    operations: tuple[Operation, ...]

    def folded(self) -> tuple[nn.Parameter, Tensor, list[FoldedProjection]]:
        """The weight, its new value, and what that costs each projection.

        Raises:
            StateError: The sum is not finite.
        """
        p = self.operations[0].projection
        live, original = self.module.base(p.parameter), self.module.original(p.parameter)
        exact = dict(self.module.grafts())[p.parameter].exact(live)
        value = rounded(exact, live.dtype)
        check_finite(p.weight_name, exact, value)
        costs = list(self._costs(exact, value, as_matrix(original, p.layout)))
        return live, as_weight(value, p.layout, live.shape), costs

    def _costs(self, exact: Tensor, value: Tensor, original: Tensor) -> Iterator[FoldedProjection]:
        for operation in self.operations:
            rows = operation.projection.rows
            own = _rows(exact, rows)
            before = _rows(original, rows).to(own)
            error = (_rows(value, rows) - own).norm()
            drift, update = error / own.norm(), error / (own - before).norm()
            yield FoldedProjection(
                name=operation.name,
                role=str(operation.projection.role),
                drift=float(drift.nan_to_num()),
                update_error=float(update.nan_to_num()),
            )


def _sums(model: nn.Module, plan: Plan) -> list[_Sum]:
    grouped: dict[str, list[Operation]] = defaultdict(list)
    for operation in plan.operations:
        grouped[operation.projection.weight_name].append(operation)
    sums = []
    for operations in grouped.values():
        module = model.get_submodule(operations[0].projection.module)
        assert isinstance(module, Adapted)
        sums.append(_Sum(module, tuple(operations)))
    return sums


def _rows(matrix: Tensor, rows: Rows) -> Tensor:
    """The given rows, as a view where they are one run."""
    if len(rows) == 1 and rows[0][2] == 1:
        return matrix[rows[0][0] : rows[0][1]]
    return take(matrix, rows)


def check_finite(name: str, exact: Tensor, value: Tensor) -> None:
    """Refuse a folded weight that is not finite.

    Raises:
        StateError: It says whether the sum is to blame, or the range of the dtype.
    """
    if value.isfinite().all():
        return
    if exact.isfinite().all():
        why = f"the sum is beyond the range of {value.dtype}"
        remedy = "fold in a wider dtype: model.float()"
    else:
        why = "the sum is not finite: training diverged"
        remedy = "load an earlier adapter file, or call surgery.undo(model)"
    raise StateError(f"{name} cannot be folded", where=name, why=why, remedy=remedy)


def _outputs(model: nn.Module, inputs: ExampleInputs | None) -> list[Tensor]:
    if inputs is None:
        return []
    with unchanged(model):
        leaves = tree_leaves(model(*inputs.args, **inputs.kwargs))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _difference(folded: list[Tensor], adapted: list[Tensor]) -> float:
    """The worst max |folded - adapted| / max |adapted| of the outputs."""
    ratios = [
        float((f - a).abs().max() / a.abs().max().clamp_min(torch.finfo(a.dtype).tiny))
        for f, a in zip(folded, adapted, strict=True)
    ]
    return max(ratios, default=0.0)


def _notes(costs: list[FoldedProjection]) -> tuple[str, ...]:
    lost = [cost for cost in costs if cost.update_error > 0.1]
    if not lost:
        return ()
    worst = max(lost, key=lambda cost: cost.update_error)
    return (
        f"rounding took more than a tenth of the update in {len(lost)} projections "
        f"({worst.update_error:.0%} in {worst.name}): fold in float32 to keep it",
    )
