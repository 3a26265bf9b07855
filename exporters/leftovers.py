"""What an export that is replaced would leave behind."""

from __future__ import annotations

from pathlib import Path

import onnx

from exporters.errors import ExportError
from exporters.external import locations, read_graph
from exporters.metadata import facts_in


def portable_twin(path: Path) -> Path:
    """Where the file of standard operators lies that belongs to a fused one."""
    return path.with_suffix(f".portable{path.suffix}")


def leftovers(path: Path) -> list[Path]:
    """Files of an earlier export to ``path`` that a new one may not write: weights beside, the portable twin.

    Whose a file is, the files say: a model names its weights, and twins have one fingerprint.
    """
    twin = portable_twin(path)
    (mark, weights), (others_mark, others_weights) = _known(path), _known(twin)
    return [*weights, twin, *others_weights] if mark == others_mark is not None else weights


def _known(path: Path) -> tuple[object, list[Path]]:
    """A model's fingerprint, and its weights beside it; nothing of what is not there, or no model."""
    try:
        model = read_graph(path)
    except ExportError:
        return None, []
    data = path.with_name(f"{path.name}.data")
    return _fingerprint(model), [data] if data.name in locations(model) else []


def _fingerprint(model: onnx.ModelProto) -> object:
    try:
        return facts_in(model).get("fingerprint")
    except Exception:  # somebody else's metadata can be anything
        return None
