"""Files appear whole or not at all, and weights beyond a protobuf's size go beside."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

import exporters
from exporters import convert, maker
from exporters.errors import ExportError
from exporters.staging import stage
from exporters.verify import Verification


def test_what_is_not_published_is_gone(tmp_path):
    with stage(tmp_path) as aside:
        (aside.folder / "a.onnx").write_text("a")
    assert list(tmp_path.iterdir()) == []


def test_what_is_published_stays_and_the_stage_goes(tmp_path):
    with stage(tmp_path) as aside:
        (aside.folder / "a.onnx").write_text("a")
        (aside.folder / "a.onnx.data").write_text("bcd")
        assert aside.size("a.onnx") == 4
        aside.publish()
    assert {file.name for file in tmp_path.iterdir()} == {"a.onnx", "a.onnx.data"}


def test_what_an_earlier_export_left_goes_with_it(tmp_path):
    old = [tmp_path / name for name in ("a.onnx", "a.portable.onnx", "a.onnx_adapter")]
    for file in (*old, tmp_path / "b.onnx"):
        file.write_text("old")
    with stage(tmp_path) as aside:
        (aside.folder / "a.onnx").write_text("new")
        aside.publish(old)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {
        "a.onnx": "new",
        "b.onnx": "old",
    }


@pytest.mark.parametrize(
    "left", ["m.portable.onnx", "m.onnx.data", "m.portable.onnx.data", "m.onnx_adapter", "m.md"]
)
def test_no_file_meets_one_of_an_earlier_export(left, tmp_path):
    (tmp_path / left).write_text("old")
    model, x = torch.nn.Linear(4, 3).eval(), torch.randn(2, 4)
    given = {"example_inputs": x, "portable": False, "verify": False}
    with pytest.raises(ExportError, match="exists already"):
        exporters.to_onnx(model, tmp_path / "m.onnx", **given)
    assert [file.name for file in tmp_path.iterdir()] == [left]
    exporters.to_onnx(model, tmp_path / "m.onnx", overwrite=True, **given)
    assert {file.name for file in tmp_path.iterdir()} == {"m.onnx", "m.md"}
    assert (tmp_path / "m.md").read_text() != "old"


def test_a_link_that_leads_nowhere_is_a_file(tmp_path):
    (tmp_path / "m.onnx").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ExportError, match="exists already"):
        exporters.to_onnx(
            torch.nn.Linear(4, 3).eval(), tmp_path / "m.onnx", example_inputs=torch.randn(2, 4)
        )
    assert (tmp_path / "m.onnx").is_symlink()


def test_other_errors_pass_through_and_leave_nothing(tmp_path):
    def fail():
        with stage(tmp_path) as aside:
            (aside.folder / "a.onnx").write_text("a")
            raise KeyError("a")

    with pytest.raises(KeyError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_vanished(tmp_path):
    with pytest.raises(ExportError), stage(tmp_path / "gone"):
        pass


@pytest.fixture
def large(monkeypatch):
    monkeypatch.setattr(convert, "LARGEST_FILE", 1000)


def test_large_weights_go_to_a_file_of_their_own(large, build, tmp_path):
    model = build("vit")
    report = exporters.to_onnx(model, tmp_path / "model.onnx", target="portable")
    assert {file.name for file in tmp_path.iterdir()} == {
        "model.onnx",
        "model.onnx.data",
        "model.md",
    }
    assert report.files[0].bytes == sum(
        file.stat().st_size for file in tmp_path.glob("model.onnx*")
    )
    x = torch.randn(2, 3, 32, 32)
    (found,) = ort.InferenceSession(tmp_path / "model.onnx").run(None, {"x": x.numpy()})
    np.testing.assert_allclose(found, model(x).detach(), atol=1e-4)


def test_a_rejected_file_finds_its_weights_under_their_new_name(
    large, build, tmp_path, monkeypatch
):
    monkeypatch.setattr(maker, "verify", lambda *_: Verification(problems=["because"]))
    with pytest.raises(exporters.VerificationError, match="because"):
        exporters.to_onnx(build("vit"), tmp_path / "model.onnx", target="portable")
    names = {"model.rejected.onnx", "model.rejected.onnx.data", "model.rejected.json"}
    assert {file.name for file in tmp_path.iterdir()} == names
    onnx.checker.check_model(tmp_path / "model.rejected.onnx")
    ort.InferenceSession(tmp_path / "model.rejected.onnx")
    report = json.loads((tmp_path / "model.rejected.json").read_text())
    assert report["files"][0]["verification"]["problems"] == ["because"]
