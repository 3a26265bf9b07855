"""``surgery fold`` and ``export``: from base model and adapter file to what is shipped."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from surgery.cli.failures import FAILED
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
from surgery.cli.staging import folder_for
from surgery.cli.trained import trained_by

if TYPE_CHECKING:
    from torch import nn

    from exporters import ExportReport

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")]


class Target(StrEnum):
    """What a file is fused for."""

    CPU = "cpu"
    CUDA = "cuda"
    PORTABLE = "portable"


class Precision(StrEnum):
    """Of the weights in the file."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


def fold(
    model: ModelOrRun,
    adapter: Annotated[
        Path | None, typer.Argument(help="What surgery.save wrote.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write.")] = None,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Compare the outputs before and after.")
    ] = True,
    overwrite: Overwrite = False,
    settings: Settings = None,
    inputs: InputShapes = None,
    pretrained: Pretrained = None,
    checkpoint: Checkpoint = None,
    as_json: Json = False,
) -> None:
    """Load an adapter file onto its base model, fold it, and save the plain model.

    transformers models are saved as save_pretrained does, others as DIR/model.safetensors.
    With a training file alone, its run is folded into RUN_FOLDER/folded.

    Example: surgery fold timm:vit_tiny_patch16_224 adapter.safetensors --pretrained --out folded
    """
    import surgery
    from surgery.anatomy.inputs import example_inputs as made_inputs

    run = trained_by(model, adapter, settings, pretrained, checkpoint)
    source = run.source if run else Source.parse(model, settings, pretrained, checkpoint)
    adapter = run.folder.adapter if run else _wanted(adapter, "ADAPTER")
    out = out or (run.folder.path / "folded" if run else _wanted(out, "--out"))
    given = example_inputs(inputs)
    with folder_for(out, overwrite) as aside:
        built = source.build(weights_matter=True)
        with working("folding"):
            surgery.load(built, adapter, example_inputs=given)
            compared = made_inputs(built, given) if check else None
            report = surgery.fold(built, check_inputs=compared)
            saver(built)(aside)
            if run:
                run.complete(aside)
    plain = report.to_dict() | {"out": str(out)}
    if run:
        run.keep(run.folder.fold, plain)
    emit(plain, report, as_json)


def export(
    model: ModelOrRun,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="ONNX file to write.")] = None,
    adapter: Annotated[Path | None, typer.Option(help="Adapter file to load and fold.")] = None,
    target: Annotated[Target, typer.Option(help="What it is fused for.")] = Target.CPU,
    precision: Annotated[Precision, typer.Option(help="Of the weights.")] = Precision.FP32,
    static: Annotated[bool, typer.Option("--static", help="Fix every shape.")] = False,
    overwrite: Overwrite = False,
    settings: Settings = None,
    inputs: InputShapes = None,
    pretrained: Pretrained = None,
    checkpoint: Checkpoint = None,
    as_json: Json = False,
) -> None:
    """Export a model to one fused, verified ONNX file. Exit 1 if the file fails verification.

    With a training file alone, its run is folded and exported to RUN_FOLDER/model.onnx, its classes named in
    the file, and verified on samples of its validation data as well.

    Example: surgery export timm:vit_tiny_patch16_224 --pretrained --out model.onnx
    """
    import exporters
    import surgery

    run = trained_by(model, adapter, settings, pretrained, checkpoint)
    source = run.source if run else Source.parse(model, settings, pretrained, checkpoint)
    adapter = run.folder.adapter if run else adapter
    out = out or (run.folder.path / "model.onnx" if run else _wanted(out, "--out"))
    given = example_inputs(inputs)
    built = source.build(weights_matter=True)
    ways: dict[str, Any] = {"target": target.value, "precision": precision.value}
    try:
        with working("exporting and verifying"):
            if adapter:
                surgery.load(built, adapter, example_inputs=given)
            facts = run.facts(built) if run else {}
            report = exporters.to_onnx(
                built, out, example_inputs=given, dynamic=not static, overwrite=overwrite,
                **ways, **facts,
            )  # fmt: skip
    except exporters.VerificationError as error:
        _refused(error.report, as_json)
        raise
    if run:
        run.keep(run.folder.export, report.to_dict())
    emit(report.to_dict(), report, as_json)
    raise typer.Exit(0 if report.passed else FAILED)


def _wanted(value: Path | None, name: str) -> Path:
    if value is None:
        raise typer.BadParameter(f"{name} is missing; only a training file does without it")
    return value


def saver(model: nn.Module) -> Callable[[Path], object]:
    """How a plain model of this kind is written into a folder."""
    own = getattr(model, "save_pretrained", None)
    return own if callable(own) else lambda folder: _save_state(model, folder)


def _save_state(model: nn.Module, folder: Path) -> None:
    """Every key of the state dict, those of tied weights included, so that it loads strictly."""
    import safetensors.torch

    state, seen = {}, set()
    for key, value in model.state_dict().items():
        tensor = value.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        state[key] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    safetensors.torch.save_file(state, folder / "model.safetensors")


def _refused(report: ExportReport | None, as_json: bool) -> None:
    if report is not None:
        emit(report.to_dict(), report, as_json)
