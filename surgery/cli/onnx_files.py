"""``surgery bench``, and what ``surgery info`` tells of an ONNX file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.table import Table

from surgery.cli.models import Source
from surgery.cli.options import (
    Checkpoint,
    InputShapes,
    ModelOrRun,
    Pretrained,
    Settings,
    example_inputs,
)
from surgery.cli.output import Json, emit, working
from surgery.cli.trained import trained_by

if TYPE_CHECKING:
    import onnx


def bench(
    model: ModelOrRun,
    onnx: Annotated[
        list[Path] | None, typer.Option("--onnx", help="Exported file; repeatable.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1)] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each contender.")] = 5,
    calls: Annotated[int, typer.Option(min=1, help="Measured calls of a turn.")] = 8,
    threads: Annotated[int | None, typer.Option(min=1)] = None,
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Whether torch.compile takes part.")
    ] = True,
    settings: Settings = None,
    inputs: InputShapes = None,
    pretrained: Pretrained = None,
    checkpoint: Checkpoint = None,
    as_json: Json = False,
) -> None:
    """Measure PyTorch and exported files against each other, in turns.

    With a training file alone, what its run exported is measured, and kept for the report.

    Example: surgery bench timm:vit_tiny_patch16_224 --onnx model.onnx --onnx model.portable.onnx
    """
    import exporters
    from exporters.external import read_graph

    run = trained_by(model, None, settings, pretrained, checkpoint)
    files = {str(path): path for path in onnx or (run.exported() if run else ())}
    if not files:
        raise typer.BadParameter("--onnx is missing")
    for path in files.values():
        read_graph(path)
    source = run.source if run else Source.parse(model, settings, pretrained, checkpoint)
    built = source.build()
    with working(f"measuring {rounds} rounds of {calls} calls"):
        report = exporters.benchmark(
            built, files, inputs=example_inputs(inputs), batch=batch, rounds=rounds, calls=calls,
            threads=threads, compiled=compiled,
        )  # fmt: skip
    if run:
        run.keep(run.folder.latency, report.to_dict())
    emit(report.to_dict(), report, as_json)


def describe(path: Path) -> dict[str, Any]:
    """Metadata, operators, target, inputs and outputs of an ONNX file as plain data."""
    from exporters.external import read_graph
    from exporters.metadata import PREFIX
    from exporters.runtime import operators

    model = read_graph(path)
    metadata = {p.key.removeprefix(PREFIX): _value(p.value) for p in model.metadata_props}
    counted = {f"{domain}::{kind}": n for (domain, kind), n in operators(model).most_common()}
    initial = {tensor.name for tensor in model.graph.initializer}
    return {
        "kind": "onnx",
        "path": str(path),
        "model": metadata.get("model"),
        "target": _target(counted, metadata),
        "opsets": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "inputs": _values(v for v in model.graph.input if v.name not in initial),
        "outputs": _values(model.graph.output),
        "operators": counted,
        "metadata": metadata,
    }


def table(plain: dict[str, Any]) -> Group:
    """The description as a person reads it."""
    facts = Table("", "", title=plain["path"], title_justify="left", show_header=False)
    for key in ("model", "target", "opsets", "inputs", "outputs"):
        facts.add_row(key, _line(plain[key]))
    for key, value in plain["metadata"].items():
        if key != "model":
            facts.add_row(key, _line(value))
    counts = Table("operator", "nodes", title="operators", title_justify="left")
    for name, count in plain["operators"].items():
        counts.add_row(name, str(count))
    return Group(facts, counts)


def _target(operators: dict[str, int], metadata: dict[str, Any]) -> str:
    """Fused for whom, in the file's own words; of files of others, whether it has operators of ONNX Runtime."""
    fused = any(name.startswith("com.microsoft::") for name in operators)
    return str(metadata.get("target", "cpu" if fused else "portable"))


def _values(entries: Iterable[onnx.ValueInfoProto]) -> list[dict[str, Any]]:
    import onnx

    return [
        {
            "name": entry.name,
            "dtype": onnx.TensorProto.DataType.Name(entry.type.tensor_type.elem_type).lower(),
            "shape": [d.dim_param or d.dim_value for d in entry.type.tensor_type.shape.dim],
        }
        for entry in entries
    ]


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _line(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) < 400 else text[:400] + " …"
