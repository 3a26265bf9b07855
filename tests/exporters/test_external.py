"""Weights beside a file are found wherever in its graph they are, and those elsewhere named."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

import exporters
from exporters.errors import ExportError
from exporters.external import elsewhere


def weight(place: str) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=place)
    return tensor


def initializer(place: str) -> onnx.GraphProto:
    return helper.make_graph([], "g", [], [], [weight(place)])


def constant(place: str) -> onnx.GraphProto:
    return helper.make_graph(
        [helper.make_node("Constant", [], ["w"], value=weight(place))], "g", [], []
    )


def inner(place: str) -> onnx.GraphProto:
    node = helper.make_node(
        "If", ["c"], ["y"], then_branch=constant(place), else_branch=initializer("a")
    )
    return helper.make_graph([node], "g", [], [])


@pytest.mark.parametrize("graph", [initializer, constant, inner])
@pytest.mark.parametrize(
    ("place", "leaves"),
    [
        ("m.onnx.data", False), ("parts/m.data", False), ("a..b", False),
        ("../m.data", True), ("parts/../../m", True), ("/etc/passwd", True),
        ("C:\\m.data", True), ("C:m.data", True), ("..\\m.data", True), ("\\\\host\\m", True),
    ],
)  # fmt: skip
def test_what_leaves_the_folder(graph, place: str, leaves: bool) -> None:
    assert elsewhere(helper.make_model(graph(place))) == (place if leaves else None)


@pytest.mark.parametrize("content", [None, b"", b"junk", b"\x08\x08\x12\x04", "cut"])
@pytest.mark.parametrize(
    "read", [exporters.open_session, exporters.facts, exporters.AdapterSession]
)
def test_what_is_no_onnx_file_is_refused_by_name(read, content, tmp_path) -> None:
    path = tmp_path / "m.onnx"
    if content == "cut":
        content = helper.make_model(constant("m.data")).SerializeToString()[:-9]
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ExportError, match=r"cannot be read(.|\n)*m\.onnx"):
        read(path)


def test_session_options_that_make_no_sense_are_refused(tmp_path) -> None:
    model = helper.make_model(constant("m.data"))
    model.metadata_props.add(key="model_surgery.session_options", value="[1, 2]")
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ExportError, match="session options cannot be read"):
        exporters.open_session(tmp_path / "m.onnx")
