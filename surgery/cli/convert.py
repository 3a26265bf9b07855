"""``surgery convert``: one adapter in the format of another library, and back."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from surgery.cli.models import Source
from surgery.cli.options import (
    Checkpoint,
    InputShapes,
    Overwrite,
    Pretrained,
    Settings,
    example_inputs,
)
from surgery.cli.output import Json, emit, working
from surgery.errors import SurgeryError

if TYPE_CHECKING:
    from torch import nn


class Format(StrEnum):
    """What an adapter can become."""

    PEFT = "peft"
    ONNX_ADAPTER = "onnx-adapter"
    SAFETENSORS = "safetensors"


def convert(
    file: Annotated[
        Path,
        typer.Argument(help="What surgery.save wrote, or a PEFT folder.", show_default=False),
    ],
    to: Annotated[Format, typer.Option("--to", help="Format to write.", show_default=False)],
    model: Annotated[
        str,
        typer.Option("--model", metavar="MODEL", help="Its base model.", show_default=False),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write; a folder for peft.")],
    overwrite: Overwrite = False,
    settings: Settings = None,
    inputs: InputShapes = None,
    pretrained: Pretrained = None,
    checkpoint: Checkpoint = None,
    as_json: Json = False,
) -> None:
    """Turn an adapter into a PEFT checkpoint, an ONNX Runtime adapter, or an adapter file of ours.

    The base model is needed: an adapter is a change of its weights, and formats cut them differently.

    Example: surgery convert adapter.safetensors --to peft --model timm:vit_tiny_patch16_224 --out lora
    """
    import surgery

    _check_paths(file, to, out, overwrite)
    built = Source.parse(model, settings, pretrained, checkpoint).build(weights_matter=True)
    with working(f"converting to {to.value}"):
        _read(built, file, example_inputs(inputs))
        _write(built, to, out, overwrite)
        plan = surgery.summary(built).plan
    plain = {
        "from": str(file),
        "to": to.value,
        "out": str(out),
        "adapters": len(plan.operations),
        "also_trained": list(plan.trained_names),
        "notes": list(plan.notes),
    }
    emit(plain, _table(plain), as_json)


def _check_paths(file: Path, to: Format, out: Path, overwrite: bool) -> None:
    """What can be refused before a model is built."""
    if not file.exists():
        raise SurgeryError("there is no such adapter", where=str(file), remedy="check the path")
    if to is Format.SAFETENSORS and out.exists() and not overwrite:
        raise SurgeryError(
            "the file exists already", where=str(out), remedy="--overwrite replaces it"
        )


def _read(model: nn.Module, file: Path, inputs: Any) -> None:
    import exporters
    import surgery

    if file.is_dir():
        exporters.from_peft(model, file, example_inputs=inputs)
    else:
        surgery.load(model, file, example_inputs=inputs)


def _write(model: nn.Module, to: Format, out: Path, overwrite: bool) -> None:
    import exporters
    import surgery

    if to is Format.PEFT:
        exporters.to_peft(model, out, overwrite=overwrite)
    elif to is Format.ONNX_ADAPTER:
        exporters.write_adapter(model.eval(), out, overwrite=overwrite)
    else:
        surgery.save(model, out)


def _table(plain: dict[str, Any]) -> Table:
    table = Table(title=plain["out"], title_justify="left", show_header=False)
    table.add_row("format", plain["to"])
    table.add_row("adapters", str(plain["adapters"]))
    table.add_row("also trained", ", ".join(plain["also_trained"]) or "nothing")
    for note in plain["notes"]:
        table.add_row("note", note)
    return table
