"""Verification has the last word: whatever is wrong with a file, it does not reach the path asked for."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import exporters
from exporters import convert
from exporters.parity import relative_error
from exporters.patterns.attention import AttentionPattern
from exporters.runtime import SessionOptions
from exporters.verify import count_operators, leaks


def rejected(tmp_path: Path, model, **kwargs) -> exporters.VerificationError:
    with pytest.raises(exporters.VerificationError) as caught:
        exporters.to_onnx(model, tmp_path / "model.onnx", **kwargs)
    left = {file.name for file in tmp_path.iterdir()}
    assert left == {"model.rejected.onnx", "model.rejected.json"}
    return caught.value


def break_fusion(monkeypatch, **wrong):
    """Let every match say something that is not so."""
    match = AttentionPattern.match

    def broken(self, *args):
        return dataclasses.replace(match(self, *args), **wrong)

    monkeypatch.setattr(AttentionPattern, "match", broken)


def test_a_wrong_scale_is_found_and_nothing_is_handed_over(build, tmp_path, monkeypatch):
    break_fusion(monkeypatch, scale=0.3)
    error = rejected(tmp_path, build("vit"))
    report = json.loads((tmp_path / "model.rejected.json").read_text())
    assert not report["passed"]
    assert error.report is not None
    assert error.report.to_dict() == report
    fused, portable = error.report.files
    assert not fused.passed
    assert fused.error > 1e-3
    assert portable.passed
    assert "output differs by" in str(error)


@pytest.mark.slow
def test_heads_in_the_wrong_order_are_found(build, tmp_path, monkeypatch):
    break_fusion(monkeypatch, heads=4)
    rejected(tmp_path, build("vit"))


def test_a_rejected_file_takes_no_old_one_with_it(build, tmp_path, monkeypatch):
    model, only = build("vit"), {"target": "portable", "overwrite": True}
    exporters.to_onnx(model, tmp_path / "model.onnx", verify=False, **only)
    before = (tmp_path / "model.onnx").read_bytes()
    monkeypatch.setattr(convert, "clean", lambda model: None)
    with pytest.raises(exporters.VerificationError):
        exporters.to_onnx(model, tmp_path / "model.onnx", **only)
    assert (tmp_path / "model.onnx").read_bytes() == before


def test_a_file_that_is_no_model_is_rejected(build, tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "save", lambda model, path: path.write_bytes(b"\x00nonsense"))
    rejected(tmp_path, build("vit"), target="portable")


def test_a_trace_of_this_machine_is_found(build, tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "clean", lambda model: None)
    error = rejected(tmp_path, build("vit"), target="portable")
    assert "stack traces" in str(error)


def test_weights_are_not_searched_for_paths(tmp_path):
    weight = np.frombuffer(str(Path.cwd()).encode().ljust(128), np.uint8)
    initializer = onnx.numpy_helper.from_array(weight, "w")
    graph = onnx.helper.make_graph([], "g", [], [], [initializer])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "a.onnx")
    assert leaks(tmp_path / "a.onnx") == []
    graph.doc_string = f"made in {Path.cwd()}"
    onnx.save(onnx.helper.make_model(graph), tmp_path / "b.onnx")
    assert any(str(Path.cwd()) in leak for leak in leaks(tmp_path / "b.onnx"))


def test_operators_are_counted_by_domain_in_the_file_and_in_what_runs(tmp_path):
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2, 3])
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2, 3])
    node = onnx.helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")
    graph = onnx.helper.make_graph([node], "g", [value], [result])
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("com.microsoft", 1)]
    path = tmp_path / "a.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    expected = Counter({("com.microsoft", "Attention"): 1})
    attention, gelu = count_operators(path, expected, SessionOptions())
    assert (attention.expected, attention.in_file, attention.in_runtime) == (1, 0, 0)
    assert (gelu.expected, gelu.in_file, gelu.in_runtime) == (0, 1, 1)
    assert not attention.passed
    assert not gelu.passed


@pytest.mark.parametrize(
    ("expected", "found", "error"),
    [
        ([1.0, -4.0], [1.0, -4.0], 0.0),
        ([1.0, -4.0], [1.0, -3.0], 0.25),
        ([0.0, 0.0], [0.0, 0.5], 0.5),
        ([1.0, 2.0], [1.0], math.nan),
        ([1.0, 2.0], [1.0, math.nan], math.nan),
        ([1.0, math.nan], [1.0, math.nan], math.nan),
    ],
)
def test_the_error_is_relative_to_the_largest_value(expected, found, error):
    measured = relative_error(np.array(expected), np.array(found))
    assert measured == pytest.approx(error, nan_ok=True)


def test_an_error_that_is_no_number_does_not_pass():
    row = exporters.parity.ParityRow("y", {}, math.nan, 1e-5)
    assert not row.passed


def test_unverified_files_say_so(build, tmp_path):
    report = exporters.to_onnx(build("vit"), tmp_path / "a.onnx", target="portable", verify=False)
    assert report.files[0].verification is None
    assert report.files[0].error is None
    assert "not verified" in str(report)


def test_predictions_that_disagree_are_found(build, tmp_path, monkeypatch):
    monkeypatch.setattr(exporters.parity, "top1_agreement", lambda *_: 0.5)
    error = rejected(tmp_path, build("vit"), target="portable", samples=torch.randn(4, 3, 32, 32))
    assert "50.0% of the top-1 predictions" in str(error)
