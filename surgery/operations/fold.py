"""Writing the adapters into the base weights: one sum in float64, one rounding, its cost."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Group
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from surgery.anatomy.capture import unchanged
from surgery.anatomy.inputs import ExampleInputs, example_inputs
from surgery.anatomy.render import as_text
from surgery.errors import StateError
from surgery.operations import render
from surgery.operations.adapted import Adapted
from surgery.operations.averaging import keep_up
from surgery.operations.graft import Costs, Graft
from surgery.operations.plan import Operation, Plan
from surgery.operations.rollback import folded_or_nothing
from surgery.operations.rows import as_matrix
from surgery.operations.state import adapted_model, release
from surgery.operations.sums import Squares


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
        return as_text(self)


@torch.no_grad()
def fold(model: nn.Module, *, check_inputs: Any = None) -> FoldReport:
    """Write the adapters into the base weights, in place, and give back the plain model.

    Each weight becomes round(original + corrections + deltas), summed in float64 and rounded once
    to its dtype. Classes and state-dict keys are the original ones, ``requires_grad`` is what it
    was before ``apply``; what else was trained stays as trained. A copy of every row is kept until all is
    written and checked, and whatever fails is taken back, the check included.

    Args:
        model: An adapted model.
        check_inputs: Inputs (a tensor, a tuple or a dict) on which the adapted and the folded model
            are compared.

    Raises:
        StateError: Nothing is applied, a folded weight would not be finite, or the model is an average that
            did not follow a recomposition. The model is untouched.
    """
    model, record = adapted_model(model, "fold")
    keep_up(model)
    inputs = None if check_inputs is None else example_inputs(model, check_inputs)
    before = _outputs(model, inputs)
    costs: list[FoldedProjection] = []
    with folded_or_nothing(model, record) as journal:
        for module, operations in _by_weight(model, record.plan):
            p = operations[0].projection
            graft = dict(module.grafts())[p.parameter]
            found = fold_weight(p.weight_name, graft, module.base(p.parameter), journal.keep)
            costs += [_cost(operation, *found[operation.slot]) for operation in operations]
        release(model, record)
        drift = None if inputs is None else _difference(_outputs(model, inputs), before)
    return FoldReport(tuple(costs), drift, _notes(costs))


def fold_weight(
    name: str, graft: Graft, live: Tensor, before_writing: Callable[[Tensor], object]
) -> Costs:
    """Write one folded weight, and refuse one that is not finite; its other rows count too.

    Args:
        name: Of the weight, for errors.
        graft: Its adapters.
        live: The weight; it is written to whether or not it is refused.
        before_writing: Called with every view of ``live`` that is about to be written to.

    Raises:
        StateError: It says whether the sum is to blame, or the range of the dtype.
    """
    others_are = all(map(_is_finite, graft.others(as_matrix(live.detach(), graft.layout))))
    costs = graft.fold_into(live, before_writing)
    squares = [square for square, _ in costs.values()]
    summed = others_are and all(math.isfinite(s.exact) for s in squares)
    if summed and all(math.isfinite(s.error) for s in squares):
        return costs
    if summed:
        why = f"the sum is beyond the range of {live.dtype}"
        remedy = "fold in a wider dtype: model.float()"
    else:
        why = "the sum is not finite: training diverged"
        remedy = "load an earlier adapter file, or call surgery.undo(model)"
    raise StateError(f"{name} cannot be folded", where=name, why=why, remedy=remedy)


def _is_finite(tensor: Tensor) -> bool:
    """In one pass and without a copy: NaN and infinity both show in the extremes."""
    low, high = tensor.detach().aminmax()
    return math.isfinite(low) and math.isfinite(high)


def _cost(operation: Operation, squares: Squares, update: float) -> FoldedProjection:
    error = math.sqrt(squares.error)
    return FoldedProjection(
        name=operation.name,
        role=str(operation.projection.role),
        drift=error / math.sqrt(squares.exact) if squares.exact else 0.0,
        update_error=error / math.sqrt(update) if update else 0.0,
    )


def _by_weight(model: nn.Module, plan: Plan) -> Iterator[tuple[Adapted, list[Operation]]]:
    """The operations on each weight, with the module that owns it."""
    grouped: dict[str, list[Operation]] = defaultdict(list)
    for operation in plan.operations:
        grouped[operation.projection.weight_name].append(operation)
    for operations in grouped.values():
        module = model.get_submodule(operations[0].projection.module)
        assert isinstance(module, Adapted)
        yield module, operations


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
