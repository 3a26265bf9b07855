"""``surgery info`` and ``diff``: what is in a file, and how far two adapters lie apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.table import Table

from surgery.cli import onnx_files
from surgery.cli.output import Json, emit, working
from surgery.errors import SurgeryError

if TYPE_CHECKING:
    from torch import Tensor

    from surgery.adapter_file import AdapterFile
    from surgery.operations.plan import Operation


def info(
    file: Annotated[
        Path, typer.Argument(help="Adapter (.safetensors) or .onnx.", show_default=False)
    ],
    as_json: Json = False,
) -> None:
    """Say what is in an adapter file or an ONNX file.

    Example: surgery info adapter.safetensors
    """
    if file.suffix == ".onnx":
        plain = onnx_files.describe(file)
        emit(plain, onnx_files.table(plain), as_json)
        return
    from surgery.adapter_file import read_file

    plain = describe(read_file(file))
    emit(plain, _info_table(plain), as_json)


def diff(
    one: Annotated[Path, typer.Argument(help="An adapter file.", show_default=False)],
    other: Annotated[Path, typer.Argument(help="Another.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Compare two adapters, projection by projection: |dW1 - dW2| / |dW1|, and their angle.

    Example: surgery diff before.safetensors after.safetensors
    """
    from surgery.adapter_file import read_file

    first, second = read_file(one), read_file(other)
    with working("multiplying the updates out"):
        plain = compare(first, second)
    emit(plain, _diff_table(plain), as_json)


def describe(file: AdapterFile) -> dict[str, Any]:
    """An adapter file as plain data."""
    from surgery.operations.identity import combined

    plan = file.plan
    kinds = Counter((o.adapter.kind, o.adapter.rank) for o in plan.operations)
    return {
        "kind": "adapter",
        "path": str(file.path),
        "model": plan.model,
        "policy": plan.policy.name,
        "adapters": [{"kind": k, "rank": r, "count": n} for (k, r), n in kinds.items()],
        "adapter_parameters": plan.adapter_parameters,
        "base": combined(file.base),
        "base_dtypes": sorted({entry.partition(":")[0] for entry in file.base}),
        "operations": [
            {"name": o.name, "role": str(o.projection.role), "base": base}
            for o, base in zip(plan.operations, file.base, strict=True)
        ],
        "also_saved": sorted(file.rest()),
    }


def compare(one: AdapterFile, other: AdapterFile) -> dict[str, Any]:
    """How far two adapter files lie apart, as plain data.

    ``{"projections": [{"name", "norms": [a, b], "relative", "cosine"}], "also_saved": [{"name",
    "relative"}], "only_in_first", "only_in_second", "same_base"}``; norms are Frobenius norms of
    everything that the adapter adds to the original weight.

    Raises:
        SurgeryError: If the two share no projection.
    """
    first = {o.name: o for o in one.plan.operations}
    second = {o.name: o for o in other.plan.operations}
    both = [name for name in first if name in second]
    if not both:
        raise SurgeryError(
            "the two files have no projection in common",
            where=f"{one.path}, {other.path}",
            why=f"the first adapts {next(iter(first), 'nothing')}, "
            f"the second {next(iter(second), 'nothing')}",
            remedy="compare adapters of the same model; one that came from PEFT has whole weights and no roles",
        )
    bases = [
        dict(zip(names, file.base, strict=True)) for names, file in ((first, one), (second, other))
    ]
    return {
        "projections": [
            {"name": n, **_apart(update(one, first[n]), update(other, second[n]))} for n in both
        ],
        "also_saved": list(_rest_apart(one, other)),
        "only_in_first": [name for name in first if name not in second],
        "only_in_second": [name for name in second if name not in first],
        "same_base": all(bases[0][name] == bases[1][name] for name in both),
    }


def update(file: AdapterFile, operation: Operation) -> Tensor:
    """Everything an adapter adds to its original weight, (out, in), float64.

    Raises:
        SurgeryError: If that cannot be told without the base model.
    """
    from surgery.adapters.base import Adapter
    from surgery.operations.make import make_adapter

    adapter = make_adapter(operation, "cpu")
    if type(adapter).read_base is not Adapter.read_base:
        raise SurgeryError(
            f"the update of a {operation.adapter.kind} adapter cannot be told from its file",
            where=f"{file.path}: {operation.name}",
            why="it hangs on the base weight, which the file does not hold",
            remedy="fold each onto its model and compare the weights",
        )
    adapter.load_state_dict(file.adapter(operation))
    total = adapter.delta()
    correction = adapter.correction()
    if correction is not None:
        left, right = correction
        total = total + left.detach().double() @ right.detach().double()
    return total


def _apart(one: Tensor, other: Tensor) -> dict[str, Any]:
    a, b = float(one.norm()), float(other.norm())
    gap = float((one - other).norm())
    return {
        "norms": [a, b],
        "relative": gap / a if a else (0.0 if gap == 0 else None),
        "cosine": float((one * other).sum()) / (a * b) if a and b else None,
    }


def _rest_apart(one: AdapterFile, other: AdapterFile) -> Iterator[dict[str, Any]]:
    theirs = other.rest()
    for name, value in one.rest().items():
        if name in theirs and theirs[name].shape == value.shape:
            apart = _apart(value.double(), theirs[name].double())
            yield {"name": name, "relative": apart["relative"]}


def _info_table(plain: dict[str, Any]) -> Table:
    table = Table(title=plain["path"], title_justify="left", show_header=False)
    adapters = (f"{a['count']} x {a['kind']}, rank {a['rank']}" for a in plain["adapters"])
    table.add_row("model", plain["model"])
    table.add_row("policy", plain["policy"])
    table.add_row("adapters", "; ".join(adapters) or "none")
    table.add_row("weights", f"{plain['adapter_parameters']:,} in adapters")
    table.add_row("also saved", ", ".join(plain["also_saved"]) or "nothing")
    table.add_row("base", f"{plain['base'][:16]} ({', '.join(plain['base_dtypes']) or 'none'})")
    return table


def _diff_table(plain: dict[str, Any]) -> Group:
    table = Table("projection", "|dW1|", "|dW2|", "|dW1 - dW2| / |dW1|", "cosine")
    for row in plain["projections"]:
        norms = (f"{norm:.3g}" for norm in row["norms"])
        table.add_row(row["name"], *norms, _number(row["relative"]), _number(row["cosine"]))
    for row in plain["also_saved"]:
        table.add_row(row["name"], "", "", _number(row["relative"]), "")
    lines = [] if plain["same_base"] else ["the two sit on different base weights"]
    lines += [f"only in the first: {name}" for name in plain["only_in_first"]]
    lines += [f"only in the second: {name}" for name in plain["only_in_second"]]
    return Group(table, *lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
