"""What travels with a file: how to feed it, what its outputs mean, where it comes from."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from torch import nn

from exporters.errors import ExportError
from exporters.inputs import Inputs
from exporters.plain import Plain
from exporters.runtime import OPTIONS_KEY, SessionOptions

PREFIX = "model_surgery."
_LIBRARIES = ("model-surgery", "torch", "onnx", "onnxscript", "onnxruntime", "timm", "transformers")


def describe(
    plain: Plain,
    inputs: Inputs,
    *,
    labels: Sequence[str] | None = None,
    preprocessing: Any = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Gather the metadata of a model; every value is JSON.

    Args:
        plain: The exported model, and what was folded into it.
        inputs: What it takes.
        labels: Name of each class; None asks a transformers config that knows real names.
        preprocessing: A mapping or a transformers processor; None asks timm's data config.
        extra: Further facts of the user (accuracy, data set), kept under their own names.
    """
    model = plain.model
    facts = {
        "model": qualified_name(model),
        "versions": versions(),
        "labels": list(labels) if labels is not None else _labels(model),
        "preprocessing": _preprocessing(model, preprocessing, inputs),
        "policies": plain.policies or None,
        **(extra or {}),
    }
    return {PREFIX + key: _json(key, value) for key, value in facts.items() if value is not None}


def qualified_name(model: nn.Module) -> str:
    """Module and class of a model."""
    return f"{type(model).__module__}.{type(model).__qualname__}"


def with_options(facts: Mapping[str, str], options: SessionOptions) -> dict[str, str]:
    """The metadata of one file: the model's, and how this file is best opened."""
    return {**facts, OPTIONS_KEY: json.dumps(options.to_dict())}


def versions() -> dict[str, str]:
    """Version of each library that takes part and is installed."""
    found = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


def _labels(model: nn.Module) -> list[str] | None:
    names = getattr(getattr(model, "config", None), "id2label", None)
    if not isinstance(names, Mapping) or not names:
        return None
    listed = [str(names[key]) for key in sorted(names)]
    placeholders = all(name == f"LABEL_{i}" for i, name in enumerate(listed))
    return None if placeholders else listed


def _preprocessing(model: nn.Module, given: Any, inputs: Inputs) -> dict[str, Any] | None:
    if isinstance(given, Mapping):
        return dict(given)
    if hasattr(given, "to_dict"):
        return dict(given.to_dict())
    if given is not None:
        raise ExportError(
            "the preprocessing cannot be written into the file",
            where=type(given).__name__,
            why="it is neither a mapping nor a processor with to_dict()",
            remedy="pass a dict, such as timm.data.resolve_model_data_config(model)",
        )
    if not isinstance(getattr(model, "pretrained_cfg", None), Mapping):
        return None
    from timm.data import resolve_model_data_config

    # The configuration tells the size of the pretrained weights, the inputs tell that of this model.
    shape = next(list(value.shape[1:]) for value in inputs.tensors.values())
    return {**resolve_model_data_config(model), "input_size": shape}


def _json(key: str, value: Any) -> str:
    try:
        return json.dumps(value)
    except TypeError as error:
        raise ExportError(
            "the metadata cannot be written into the file",
            where=key,
            why=str(error),
            remedy="use strings, numbers, lists and mappings only",
        ) from error
