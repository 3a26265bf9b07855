"""The graph of an ONNX file, and where its weights lie, if not in the file: beside it, never elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import PurePosixPath, PureWindowsPath

import onnx

from exporters.errors import ExportError
from surgery.errors import told_at_length


def read_graph(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """An ONNX file without the weights that lie beside it.

    Raises:
        ExportError: If it is missing, or no ONNX model.
    """
    try:
        model = onnx.load(os.fspath(path), load_external_data=False)
        if not model.graph.node:
            raise ValueError("it holds no graph")
    except Exception as error:  # protobuf's errors have no common root
        raise ExportError(
            "the ONNX file cannot be read",
            where=os.fspath(path),
            why=told_at_length(error),
            remedy="check the path; a file that is there is truncated, or no ONNX",
        ) from error
    return model


def elsewhere(model: onnx.ModelProto) -> str | None:
    """A place outside the model's folder that its weights are said to be in; None if there is none.

    ONNX Runtime looks for itself only in its newer versions, 1.22 would read any file.
    """
    return next((place for place in sorted(locations(model)) if _leaves(place)), None)


def locations(model: onnx.ModelProto) -> set[str]:
    """Where a model says that its weights lie, if not in the file."""
    return {
        entry.value
        for tensor in _tensors(model.graph)
        for entry in tensor.external_data
        if entry.key == "location"
    }


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Initializers and constants, those of inner graphs too."""
    yield from graph.initializer
    for attribute in (a for node in graph.node for a in node.attribute):
        yield attribute.t
        yield from attribute.tensors
        for inner in (attribute.g, *attribute.graphs):
            yield from _tensors(inner)


def _leaves(place: str) -> bool:
    kinds = (PurePosixPath(place), PureWindowsPath(place))
    return any(path.is_absolute() or path.drive or ".." in path.parts for path in kinds)
