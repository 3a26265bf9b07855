"""Plans, summaries and reports as tables that a person understands."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from surgery.anatomy.render import ranges, runs
from surgery.anatomy.types import Projection

if TYPE_CHECKING:
    from surgery.operations.fold import FoldReport
    from surgery.operations.plan import Operation, Plan
    from surgery.operations.summary import Summary

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


def plan_table(plan: Plan) -> Group:
    """One line for each kind of operation, what else trains, the counts, and the notes."""
    total = plan.base_parameters + plan.adapter_parameters
    return Group(*_operations(plan), _counts(plan.trainable, total), *_notes(plan.notes))


def summary_table(summary: Summary) -> Group:
    """The operations of the plan, and what trains now."""
    return Group(*_operations(summary.plan), _counts(summary.trainable, summary.total))


def fold_table(report: FoldReport) -> Group:
    """The worst drift of each kind of projection, and of the function if it was measured."""
    table = _table("fold", "role", "projections", "rounding / weight", "rounding / update")
    roles: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for projection in report.projections:
        roles[projection.role].append((projection.drift, projection.update_error))
    for role, errors in roles.items():
        drift, update = (max(column) for column in zip(*errors, strict=True))
        table.add_row(role, str(len(errors)), f"{drift:.1e}", f"{update:.1e}")
    lines: list[RenderableType] = [table]
    if report.function_drift is not None:
        lines.append(
            Text(f"output: max |folded - adapted| / max |adapted| = {report.function_drift:.1e}")
        )
    return Group(*lines, *_notes(report.notes))


def _operations(plan: Plan) -> Iterable[RenderableType]:
    title = f"{plan.policy.name} on {plan.model.rpartition('.')[2]}"
    table = _table(title, "role", "weight", "rows", "adapter", "layers", "acts on", "trains")
    for family in _families(plan.operations):
        table.add_row(*_plan_line(family))
    yield table
    for word, names in plan.train.items():
        if names:
            yield Text(f"also trains, {word}: {_some(names)}")


def _counts(trainable: int, total: int) -> Text:
    return Text(f"{trainable:,} of {total:,} parameters train ({trainable / max(total, 1):.2%})")


def _plan_line(family: Sequence[Operation]) -> tuple[str, ...]:
    first = family[0]
    p, spec = first.projection, first.adapter
    options = "".join(f", {key}={value}" for key, value in spec.options.items())
    alpha = "" if spec.alpha is None else f", alpha={spec.alpha:g}"
    return (
        str(p.role),
        p.weight_name if len(family) == 1 else _template(p),
        "all" if p.whole else runs(p.rows),
        f"{spec.kind}, rank {spec.rank}{alpha}{options}",
        ranges([operation.projection.layer for operation in family]),
        "output" if first.access == "module" else "weight",
        f"{sum(operation.parameters for operation in family):,}",
    )


def _families(operations: Iterable[Operation]) -> list[list[Operation]]:
    """Operations that differ in their layer alone."""
    families: dict[object, list[Operation]] = defaultdict(list)
    for operation in operations:
        p = operation.projection
        shape = (p.rows, p.in_features, operation.access)
        families[p.role, _template(p), shape, operation.adapter.model_dump_json()].append(operation)
    return list(families.values())


def _template(projection: Projection) -> str:
    """The weight's name with a star for every number in its path."""
    return _NUMBER.sub("*", projection.weight_name)


def _some(names: Sequence[str], shown: int = 4) -> str:
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {rest} more" if rest > 0 else "")


def _notes(notes: Iterable[str]) -> list[Text]:
    return [Text(f"note: {note}", style="yellow") for note in notes]


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", pad_edge=False)
    for heading in headings:
        numeric = heading in {"trains", "projections", "rounding / weight", "rounding / update"}
        table.add_column(heading, justify="right" if numeric else "left", overflow="fold")
    return table
