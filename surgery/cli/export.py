"""``surgery export``: from base model and adapter file to one fused, verified ONNX file."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from surgery.cli import export_words as words
from surgery.cli.failures import FAILED
from surgery.cli.models import Source
from surgery.cli.options import (
    Checkpoint,
    InputShapes,
    ModelOrRun,
    Overwrite,
    Pretrained,
    Settings,
    example_inputs,
    wanted,
)
from surgery.cli.output import Json, emit, working
from surgery.cli.trained import trained_by

if TYPE_CHECKING:
    from exporters import ExportReport


class Target(StrEnum):
    """What a file is fused for."""

    CPU = "cpu"
    CUDA = "cuda"
    TENSORRT = "tensorrt"
    PORTABLE = "portable"


class Precision(StrEnum):
    """Of the weights in the file."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


class Adapters(StrEnum):
    """Where what was learned goes."""

    FOLD = "fold"
    RUNTIME = "runtime"


class Cache(StrEnum):
    """On which side the prompts of a batch may be padded."""

    NONE = "none"
    EITHER = "either"
    RIGHT = "right"


_CACHES: dict[Cache, Any] = {Cache.NONE: False, Cache.EITHER: True, Cache.RIGHT: "right"}


def export(
    model: ModelOrRun,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="ONNX file to write.")] = None,
    adapter: Annotated[Path | None, typer.Option(help="Adapter file to load.")] = None,
    adapters: Annotated[
        Adapters, typer.Option(help="Into the weights, or into a file of their own.")
    ] = Adapters.FOLD,
    target: Annotated[Target, typer.Option(help="What it is fused for.")] = Target.CPU,
    precision: Annotated[Precision, typer.Option(help="Of the weights.")] = Precision.FP32,
    cache: Annotated[
        Cache, typer.Option(help="One step of generation; where prompts may be padded.")
    ] = Cache.NONE,
    static: Annotated[bool, typer.Option("--static", help="Fix every shape.")] = False,
    dynamic: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=DIM:AXIS,...", help="Dynamic dimensions, by input; repeatable."),
    ] = None,
    profile: Annotated[
        list[str] | None,
        typer.Option(metavar="AXIS=MIN,OPT,MAX", help="Sizes of TensorRT's engines; repeatable."),
    ] = None,
    portable: Annotated[
        bool, typer.Option("--portable/--no-portable", help="Standard operators in a second file.")
    ] = True,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Whether to run what was written.")
    ] = True,
    samples: Annotated[
        Path | None,
        typer.Option(help="Real inputs to compare predictions on: .npy, .npz, .safetensors."),
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="Names of the classes, one a line.")] = None,
    processor: Annotated[
        Path | None, typer.Option(help="Folder of a transformers processor or tokenizer.")
    ] = None,
    preprocessing: Annotated[
        Path | None, typer.Option(help="How inputs are made, YAML or JSON, in its place.")
    ] = None,
    accuracy: Annotated[
        list[str] | None,
        typer.Option(metavar="METRIC=VALUE", help="What you measured; repeatable."),
    ] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Further facts; repeatable.")
    ] = None,
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

    if static and dynamic:
        raise typer.BadParameter("--static fixes what --dynamic names")
    ways = {
        "target": target.value, "precision": precision.value, "adapters": adapters.value,
        "cache": _CACHES[cache], "dynamic": words.axes(dynamic) or not static,
        "profile": words.profile(profile), "portable": portable, "verify": verify,
        "overwrite": overwrite,
    }  # fmt: skip
    told = {
        "samples": words.samples(samples), "labels": words.labels(labels),
        "processor": words.processor(processor), "preprocessing": words.settings(preprocessing),
        "accuracy": words.facts(accuracy), "metadata": words.facts(metadata),
    }  # fmt: skip
    run = trained_by(model, adapter, settings, pretrained, checkpoint)
    source = run.source if run else Source.parse(model, settings, pretrained, checkpoint)
    adapter = run.folder.adapter if run else adapter
    out = out or (run.folder.path / "model.onnx" if run else wanted(out, "--out"))
    given = example_inputs(inputs)
    built = source.build(weights_matter=True)
    try:
        with working("exporting and verifying"):
            if adapter:
                surgery.load(built, adapter, example_inputs=given)
            known = _joined(run.facts(built) if run else {}, told)
            report = exporters.to_onnx(built, out, example_inputs=given, **ways, **known)
    except exporters.VerificationError as error:
        _refused(error.report, as_json)
        raise
    if run:
        run.keep(run.folder.export, report.to_dict())
    emit(report.to_dict(), report, as_json)
    raise typer.Exit(0 if report.passed else FAILED)


def _joined(run: dict[str, Any], told: dict[str, Any]) -> dict[str, Any]:
    """What a run knows, and what was said in its place; metadata of both."""
    found = {key: value for key, value in told.items() if value is not None}
    metadata = {**(run.get("metadata") or {}), **(found.get("metadata") or {})}
    return run | found | ({"metadata": metadata} if metadata else {})


def _refused(report: ExportReport | None, as_json: bool) -> None:
    if report is not None:
        emit(report.to_dict(), report, as_json)
