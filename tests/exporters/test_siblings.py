"""Slices of one tensor become a split, and nobody looks at those of other tensors."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from unittest import mock

import onnx
import onnx_ir as ir
import onnxscript.optimizer
import pytest
from onnxscript.rewriter._matcher import SimplePatternMatcher

from exporters.siblings import only_siblings_are_paired

TENSORS = 20


def halved() -> ir.Model:
    """Halves of many tensors; the later one is taken first, for only such pairs become a split."""
    lines = [
        f"n{i + 1} = Exp(n{i}) b{i} = Slice(n{i + 1}, half, whole, axis) a{i} = Slice(n{i + 1}, zero, half, axis)"
        for i in range(TENSORS)
    ]
    total = f"y = Sum({', '.join(f'a{i}, b{i}' for i in range(TENSORS))})"
    numbers = "int64[1] zero = {0}, int64[1] half = {4}, int64[1] whole = {8}, int64[1] axis = {1}"
    text = f"""<ir_version: 9, opset_import: ["" : 20]>
        halved (float[2,8] n0) => (float[2,4] y) <{numbers}> {{ {" ".join(lines)} {total} }}"""
    return ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))


def optimized(within: AbstractContextManager[None]) -> tuple[list[str], int]:
    """Operators that are left, and how many pairs were tried."""
    model, tries = halved(), SimplePatternMatcher._multi_match
    with within, mock.patch.object(SimplePatternMatcher, "_multi_match", autospec=True) as tried:
        tried.side_effect = tries
        onnxscript.optimizer.optimize_ir(model)
    return [node.op_type for node in model.graph], tried.call_count


@pytest.fixture(scope="module")
def before() -> tuple[list[str], int]:
    return optimized(nullcontext())


def test_the_graph_is_what_it_was(before: tuple[list[str], int]) -> None:
    operators, _ = optimized(only_siblings_are_paired())
    assert operators == before[0] and operators.count("Split") == TENSORS


def test_pairs_of_other_tensors_are_not_tried(before: tuple[list[str], int]) -> None:
    _, tried = optimized(only_siblings_are_paired())
    assert before[1] > TENSORS**2 and tried <= 4 * TENSORS
