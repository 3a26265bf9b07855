"""The model card beside an export: Markdown for people, YAML on top of it for hubs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
from huggingface_hub import ModelCard, ModelCardData
from torch import nn

from exporters.metadata import PREFIX
from exporters.report import ExportReport, FileReport

SUFFIX = ".md"
_TEMPLATE = Path(__file__).with_name("card.md.jinja")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def write(folder: Path, report: ExportReport, facts: Mapping[str, str], model: nn.Module) -> Path:
    """Write the card of the files in ``folder`` (the stage) beside them, named after the first.

    It says nothing that is not in the files' metadata or in the report, and names no local path.
    """
    told = {key.removeprefix(PREFIX): json.loads(value) for key, value in facts.items()}
    settings, accuracy = told.pop("preprocessing", None), _by_metric(told.get("accuracy"))
    first = folder / report.files[0].path.name
    task, base = task_of(model), told.get("base_model") or _base_model(model)
    data = ModelCardData(
        base_model=base,
        library_name="onnx",
        license=told.get("license"),
        metrics=list(accuracy) or None,
        pipeline_tag=task,
        tags=["model-surgery", "onnxruntime"],
    )
    card = ModelCard.from_template(
        data,
        template_path=str(_TEMPLATE),
        **{key: told.get(key) for key in ("model", "labels", "adapters", "fingerprint")},
        accuracy=accuracy,
        name=first.stem,
        task=task,
        base_model=base,
        fused=report.fused,
        sites=len(report.sites),
        files=[_row(folder / file.path.name, file) for file in report.files],
        providers=report.files[0].session_options.told(),
        values=list(_values(first)),
        preprocessing=None if settings is None else _one_key_a_line(settings),
        notes=report.notes,
        versions=", ".join(f"{name} {version}" for name, version in report.versions.items()),
    )
    path = first.with_suffix(SUFFIX)
    path.write_text(f"{str(card).strip()}\n", encoding="utf-8")
    return path


def task_of(model: nn.Module) -> str | None:
    """The hub's word for what a model does, as far as its class tells."""
    name = type(model).__name__
    if hasattr(model, "config"):
        from transformers.modelcard import TASK_MAPPING

        return next((task for task, kinds in TASK_MAPPING.items() if name in kinds.values()), None)
    if not isinstance(getattr(model, "pretrained_cfg", None), Mapping):
        return None
    classes = getattr(model, "num_classes", 0)
    return "image-classification" if classes else "image-feature-extraction"


def _by_metric(told: Any) -> dict[str, Any]:
    """What was measured; a caller may have put one bare number into ``metadata``."""
    if told is None:
        return {}
    return dict(told) if isinstance(told, Mapping) else {"accuracy": told}


def _base_model(model: nn.Module) -> str | None:
    """The repository that a transformers model was loaded from; a folder means nothing elsewhere."""
    source = getattr(getattr(model, "config", None), "_name_or_path", None) or ""
    return source if _HUB_ID.fullmatch(source) and not Path(source).exists() else None


def _row(staged: Path, file: FileReport) -> dict[str, Any]:
    return {
        "name": staged.name,
        "target": file.target,
        "precision": file.precision,
        "megabytes": file.bytes / 1e6,
        "sha256": _sha256(staged),
        "verdict": _verdict(file),
    }


def _verdict(file: FileReport) -> str:
    if file.verification is None:
        return "not verified"
    error = (
        "" if file.error is None else f", largest relative error against PyTorch {file.error:.1e}"
    )
    top1 = file.verification.top1
    agreement = "" if top1 is None else f", {top1:.1%} of the predictions on samples agree"
    return f"verified{error}{agreement}"


def _one_key_a_line(settings: Mapping[str, Any]) -> str:
    lines = (f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in settings.items())
    return "{\n" + ",\n".join(lines) + "\n}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _values(path: Path) -> Iterator[dict[str, Any]]:
    graph = onnx.load(path, load_external_data=False).graph
    initial = {tensor.name for tensor in graph.initializer}
    for side, values in (("input", graph.input), ("output", graph.output)):
        for value in values:
            kind = value.type.tensor_type
            if value.name not in initial:
                yield {
                    "side": side,
                    "name": value.name,
                    "dtype": onnx.TensorProto.DataType.Name(kind.elem_type).lower(),
                    "shape": [d.dim_param or d.dim_value or "?" for d in kind.shape.dim],
                }
