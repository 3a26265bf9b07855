"""Files for TensorRT: standard operators only, and the sizes that engines are built for. No engine is built here."""

from __future__ import annotations

import onnx
import pytest
import torch

import exporters
from exporters.errors import ExportError
from exporters.providers import CPU, CUDA, TENSORRT
from exporters.runtime import SessionOptions, available, recommended_options
from tests.exporters.conftest import ZOO


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A fp16 file of a model with masks, and its report."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("tensorrt") / "model.onnx"
    report = exporters.to_onnx(
        ZOO["bert"]().eval(),
        path,
        target="tensorrt",
        precision="fp16",
        profile={"batch": (1, 4, 16)},
    )
    return path, report


def test_the_file_holds_what_tensorrt_takes_and_says_what_engines_are_for(file):
    path, report = file
    model = onnx.load(path)
    assert {(o.domain, o.version) for o in model.opset_import} == {("", 20)}
    assert {node.domain for node in model.graph.node} == {""}
    assert report.sites == ()
    options = recommended_options(path)
    assert options == report.files[0].session_options
    assert options.providers == (TENSORRT, CUDA, CPU)
    assert (
        options.provider_options
        == {
            "trt_fp16_enable": "1",
            "trt_profile_min_shapes": "input_ids:1x1,attention_mask:1x1",
            "trt_profile_opt_shapes": "input_ids:4x64,attention_mask:4x64",  # 64 positions are all it has
            "trt_profile_max_shapes": "input_ids:16x64,attention_mask:16x64",
        }
    )
    assert (
        "engines are built for batch 1 to 16, best at 4; sequence 1 to 64, best at 64"
        in report.notes
    )
    card = report.card.read_text()
    assert "('TensorrtExecutionProvider', {'trt_fp16_enable': '1'" in card
    assert exporters.facts(path)["target"] == "tensorrt"


def test_where_it_was_verified_is_said_and_opening_it_is_no_quiet_cpu(file):
    path, report = file
    if available(report.files[0].session_options) == report.files[0].session_options:
        pytest.skip("TensorRT is here")
    first = available(SessionOptions((TENSORRT, CUDA, CPU))).providers[0]
    assert f"{TENSORRT} is not here: verified on {first}" in report.notes
    with pytest.raises(ExportError, match="TensorrtExecutionProvider is not available") as caught:
        exporters.open_session(path)
    assert "tensorrt" in caught.value.remedy


def test_what_a_missing_provider_is_told_is_told_to_no_other():
    options = SessionOptions(("NowhereExecutionProvider", CPU), (), {"trt_fp16_enable": "1"})
    assert available(options) == SessionOptions((CPU,))


def test_triton_gets_the_same_sizes(file, tmp_path):
    path, _ = file
    home = exporters.triton_repository(path, tmp_path / "repository")
    text = (home / "config.pbtxt").read_text()
    assert "input_ids:16x64,attention_mask:16x64" in text
    assert 'name: "tensorrt"' in text


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"precision": "int8"}, "int8"),
        ({"adapters": "runtime"}, "adapters"),
        ({"cache": True}, "cache"),
        ({"profile": {"width": (1, 2, 3)}}, "no such dynamic axis"),
        ({"profile": {"batch": (4, 2, 8)}}, "no .smallest"),
        ({"profile": {"sequence": (1, 2, 65)}}, "at most 64"),
        ({"target": "cpu", "profile": {"batch": (1, 2, 3)}}, "target='cpu'"),
    ],
)
def test_what_an_engine_cannot_be_is_refused(given, reason, build, tmp_path):
    with pytest.raises(ExportError, match=reason):
        exporters.to_onnx(build("bert"), tmp_path / "a.onnx", **{"target": "tensorrt", **given})
    assert list(tmp_path.iterdir()) == []
