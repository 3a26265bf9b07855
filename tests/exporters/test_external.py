"""Weights beside a file are found wherever in its graph they are, and those elsewhere named."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

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
