"""Fewer bits: what the file holds, what it costs, and who may run it."""

from __future__ import annotations

import onnx
import pytest
import torch

import exporters
from exporters import precision as precisions
from exporters import runtime
from exporters.errors import ExportError
from exporters.runtime import CPU, CUDA, SessionOptions, available, open_session


def elements(path) -> set[int]:
    graph = onnx.load(path).graph
    return {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}


def test_int8_quantises_every_matrix_product_and_says_what_it_costs(build, tmp_path):
    samples = torch.randn(8, 3, 32, 32)
    report = exporters.to_onnx(
        build("vit"), tmp_path / "model.onnx", precision="int8", samples=samples
    )
    fused, portable = report.files
    nodes = [node.op_type for node in onnx.load(fused.path).graph.node]
    assert nodes.count("MatMulInteger") == 9
    assert nodes.count("MultiHeadAttention") == report.fused == 2
    assert "MatMul" not in nodes
    assert {node.domain for node in onnx.load(portable.path).graph.node} == {""}
    assert 1e-4 < fused.error < 0.25
    assert fused.verification.top1 is not None
    assert "top-1 predictions agree" in str(report)
    assert any("9 of 9 matrix products" in note for note in report.notes)
    assert elements(fused.path) == {onnx.TensorProto.FLOAT}


def test_fp16_halves_the_file_and_keeps_fp32_at_its_ends(build, tmp_path):
    model = build("bert")
    exporters.to_onnx(model, tmp_path / "whole.onnx", target="portable")
    report = exporters.to_onnx(model, tmp_path / "half.onnx", target="cuda", precision="fp16")
    fused, portable = report.files
    onnx.checker.check_model(fused.path, full_check=True)
    assert {t.data_type for t in onnx.load(fused.path).graph.initializer} >= {
        onnx.TensorProto.FLOAT16
    }
    assert elements(fused.path) == {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}
    assert portable.bytes < 0.7 * (tmp_path / "whole.onnx").stat().st_size
    assert 1e-6 < fused.error < 5e-3
    assert report.fused == 2
    assert fused.session_options.provider_options == {}


def test_a_cuda_file_says_where_it_was_verified(build, tmp_path, monkeypatch):
    report = exporters.to_onnx(build("vit"), tmp_path / "model.onnx", target="cuda")
    fused, portable = report.files
    assert fused.session_options.providers == (CUDA, CPU)
    assert fused.session_options.provider_options == {"use_tf32": "0"}
    assert portable.session_options.providers == (CPU,)
    if available(fused.session_options) == fused.session_options:
        assert report.notes == ()
    else:
        assert f"{CUDA} is not here: verified on {CPU}" in report.notes


def test_a_provider_that_is_missing_is_no_quiet_cpu(build, tmp_path):
    path = tmp_path / "model.onnx"
    exporters.to_onnx(build("vit"), path, target="portable")
    with pytest.raises(ExportError, match="NowhereExecutionProvider is not available") as caught:
        open_session(path, options=SessionOptions(("NowhereExecutionProvider", CPU)))
    assert "model-surgery[gpu]" in caught.value.remedy
    with pytest.raises(ExportError, match="CUDAExecutionProvider is not available"):
        runtime._require_provider(CUDA, [CPU])  # built in, but its libraries did not load
    assert open_session(path, options=SessionOptions((CPU,)))


def test_a_provider_that_is_built_in_but_does_not_start_is_not_here(monkeypatch, capfd):
    built_in = ["NowhereExecutionProvider", CPU]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: built_in)
    assert available(SessionOptions(tuple(built_in))) == SessionOptions((CPU,))
    assert capfd.readouterr().out == ""


def test_the_error_of_each_precision_has_its_own_bound(build, tmp_path, monkeypatch):
    strict = precisions.Tolerance(1e-5, 0.99)
    monkeypatch.setitem(precisions.TOLERANCES, "int8", strict)
    with pytest.raises(exporters.VerificationError, match="allowed 1e-05"):
        exporters.to_onnx(
            build("vit"), tmp_path / "model.onnx", target="portable", precision="int8"
        )


def test_a_graph_without_matrix_products_has_nothing_to_quantise(tmp_path):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()).eval()
    with pytest.raises(ExportError, match="nothing to quantise"):
        exporters.to_onnx(
            model,
            tmp_path / "model.onnx",
            precision="int8",
            example_inputs=torch.randn(2, 3, 8, 8),
        )
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_precision(build, tmp_path):
    with pytest.raises(ExportError, match="precision='int3'"):
        exporters.to_onnx(build("vit"), tmp_path / "model.onnx", precision="int3")
