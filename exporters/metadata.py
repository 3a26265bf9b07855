"""What travels with a file: how to feed it, what its outputs mean, where it comes from."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import onnx
from torch import nn

from exporters import lineage
from exporters.capture import Captured
from exporters.errors import ExportError
from exporters.external import read_graph
from exporters.inputs import Inputs
from exporters.plain import Plain
from exporters.preprocessing import preprocessing as preprocessing_of
from exporters.private import local_paths
from exporters.runtime import OPTIONS_KEY, SessionOptions

PREFIX = "model_surgery."
_OWN = frozenset(
    {
        "model", "versions", "labels", "preprocessing", "tokenizer", "policies", "adapters",
        "adapter_base", "fingerprint", "target", "precision", "opset", "axes", "session_options",
    }
)  # fmt: skip
_LIBRARIES = ("model-surgery", "torch", "onnx", "onnxscript", "onnxruntime", "timm", "transformers")


def describe(
    plain: Plain,
    inputs: Inputs,
    *,
    labels: Sequence[str] | None = None,
    processor: Any = None,
    preprocessing: Mapping[str, Any] | None = None,
    accuracy: Mapping[str, float] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Gather the metadata of a model; every value is JSON.

    Args:
        plain: The exported model, and what was folded into it.
        inputs: What it takes.
        labels: Name of each class; None asks a transformers config that knows real names.
        processor: An image processor, tokenizer or processor of transformers; None asks the model.
        preprocessing: A mapping in its place.
        accuracy: What the caller measured, by the name of the metric.
        extra: Further facts of the user (licence, data set), kept under their own names.

    Raises:
        ExportError: If something is no JSON, holds a local path, or does not fit the model.
    """
    model = plain.model
    _check_names(extra or {})
    facts = {
        "model": qualified_name(model),
        "versions": versions(),
        "labels": _labels(model, labels),
        **preprocessing_of(model, inputs, processor, preprocessing),
        **lineage.facts(plain.lineages, model),
        "accuracy": _accuracy(accuracy),
    }
    facts |= _further(extra or {}, facts)
    return {PREFIX + key: _json(key, value) for key, value in facts.items() if value is not None}


def facts(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What an exported file says about itself: model, labels, preprocessing, fingerprint, versions...

    Without this package: ``session.get_modelmeta().custom_metadata_map``, keys with the prefix
    ``model_surgery.``, every value JSON.

    Raises:
        ExportError: If it is missing, or no ONNX model.
    """
    return facts_in(read_graph(path))


def facts_in(content: onnx.ModelProto) -> dict[str, Any]:
    """The same of a model that was read already."""
    return {
        entry.key.removeprefix(PREFIX): json.loads(entry.value)
        for entry in content.metadata_props
        if entry.key.startswith(PREFIX)
    }


def check_labels(labels: Sequence[str] | None, model: nn.Module, captured: Captured) -> None:
    """Whether some output has a number for each label, of a model that does not say how many classes it has.

    A lone number may stand for two classes.

    Raises:
        ExportError: With both numbers.
    """
    if labels is None or _classes(model) is not None:
        return
    scores = [value for value in captured.values if value.is_floating_point() and value.ndim > 1]
    widths = [value.shape[-1] for value in scores if isinstance(value.shape[-1], int)]
    if widths and not {1, len(labels)} & set(widths):
        told = " or ".join(map(str, dict.fromkeys(widths)))
        raise _unlabelled(len(labels), f"its outputs have {told} numbers a row")


def qualified_name(model: nn.Module) -> str:
    """Module and class of a model."""
    return f"{type(model).__module__}.{type(model).__qualname__}"


def of_file(
    facts: Mapping[str, str],
    options: SessionOptions,
    target: str,
    precision: str,
    opset: int,
    axes: Mapping[str, Any],
) -> dict[str, str]:
    """The metadata of one file: the model's, what this file is, the sizes it holds for, and how it is best opened."""
    own = {"target": target, "precision": precision, "opset": opset, "axes": axes}
    own_json = {PREFIX + key: json.dumps(value) for key, value in own.items()}
    return {**facts, **own_json, OPTIONS_KEY: json.dumps(options.to_dict())}


def versions() -> dict[str, str]:
    """Version of each library that takes part and is installed."""
    found = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


def _check_names(extra: Mapping[str, Any]) -> None:
    taken = sorted(_OWN & extra.keys())
    if taken:
        why = "the exporter itself writes what stands under this name"
        raise _unwritable(taken[0], why, "other names, and labels= or preprocessing= for these")


def _labels(model: nn.Module, given: Sequence[str] | None) -> list[str] | None:
    config = getattr(model, "config", None)
    if given is None:
        return _own_labels(config)
    classes = _classes(model)
    if classes and len(given) != classes:
        raise _unlabelled(len(given), f"the model has {classes} classes")
    return list(given)


def _classes(model: nn.Module) -> int | None:
    """How many classes a model says it has."""
    config = getattr(model, "config", None)
    return getattr(config, "num_labels", None) or getattr(model, "num_classes", None) or None


def _unlabelled(count: int, why: str) -> ExportError:
    return ExportError(
        "the labels do not fit the model",
        where="labels",
        why=f"there are {count} of them, and {why}",
        remedy="pass one name for each class, in the order of the outputs",
    )


def _own_labels(config: Any) -> list[str] | None:
    names = getattr(config, "id2label", None)
    if not isinstance(names, Mapping) or not names:
        return None
    listed = [str(names[key]) for key in sorted(names)]
    placeholders = all(name == f"LABEL_{i}" for i, name in enumerate(listed))
    return None if placeholders else listed


def _accuracy(given: Mapping[str, float] | None) -> dict[str, float] | None:
    if given is None:
        return None
    odd = [name for name, value in given.items() if not math.isfinite(value)]
    if odd:
        raise ExportError(
            "the accuracy cannot be written into the file",
            where=odd[0],
            why=f"{given[odd[0]]} is no finite number",
            remedy="pass what was measured, as accuracy={'top-1': 0.81}",
        )
    return {name: float(value) for name, value in given.items()}


def _further(extra: Mapping[str, Any], facts: Mapping[str, Any]) -> Mapping[str, Any]:
    taken = sorted(extra.keys() & facts.keys())
    if taken:
        raise ExportError(
            f"metadata={{{taken[0]!r}: ...}} would hide what the exporter writes under this name",
            remedy=f"pass {taken[0]}= where to_onnx takes it, or choose another name",
        )
    return extra


def _json(key: str, value: Any) -> str:
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:  # ValueError: NaN, or a list that holds itself
        raise _unwritable(key, str(error), "strings, numbers, lists and mappings") from error
    if path := next(local_paths(text), None):
        raise _unwritable(key, f"{path} is a local path", "names that mean something elsewhere")
    return text


def _unwritable(key: str, why: str, what: str) -> ExportError:
    return ExportError(
        "the metadata cannot be written into the file",
        where=key,
        why=why,
        remedy=f"use {what} only",
    )
