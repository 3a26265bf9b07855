"""Files appear whole or not at all, and weights beyond a protobuf's size go beside."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

import exporters
from exporters import convert, maker, staging
from exporters.errors import ExportError
from exporters.leftovers import leftovers
from exporters.staging import stage
from exporters.verify import Verification


@pytest.fixture
def large(monkeypatch):
    monkeypatch.setattr(convert, "LARGEST_FILE", 1000)


def raising(error):
    def fail(*args):
        raise error

    return fail


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


def test_what_belongs_to_an_old_file_goes_once_the_new_one_is_there(tmp_path, monkeypatch):
    old = [tmp_path / name for name in ("a.onnx", "a.portable.onnx", "a.onnx.data")]
    for file in (*old, tmp_path / "b.onnx"):
        file.write_text("old")

    def publish():
        with stage(tmp_path) as aside:
            (aside.folder / "a.onnx").write_text("new")
            aside.publish(old)

    with monkeypatch.context() as broken:
        broken.setattr(staging.os, "replace", raising(OSError("no")))
        with pytest.raises(ExportError):
            publish()
    assert {f.name: f.read_text() for f in tmp_path.iterdir()} == {
        **{file.name: "old" for file in old},
        "b.onnx": "old",
    }
    publish()
    assert {f.name: f.read_text() for f in tmp_path.iterdir()} == {"a.onnx": "new", "b.onnx": "old"}


def test_a_file_that_appeared_meanwhile_is_kept(tmp_path):
    def publish():
        with stage(tmp_path) as aside:
            (aside.folder / "a.onnx.data").write_text("new")
            (tmp_path / "a.onnx.data").write_text("old")
            aside.publish(overwrite=False)

    with pytest.raises(ExportError, match="exists already"):
        publish()
    assert {f.name: f.read_text() for f in tmp_path.iterdir()} == {"a.onnx.data": "old"}


def exported(path, seed=0, **options):
    torch.manual_seed(seed)
    model = torch.nn.Linear(64, 64).eval()
    exporters.to_onnx(
        model, path, example_inputs=torch.randn(2, 64), verify=False, overwrite=True, **options
    )


def test_the_portable_twin_of_a_file_that_is_replaced_goes_too(large, tmp_path):
    exported(tmp_path / "m.onnx")
    assert len(leftovers(tmp_path / "m.onnx")) == 3
    exported(tmp_path / "m.onnx", seed=1, portable=False)
    assert {f.name for f in tmp_path.iterdir()} == {"m.onnx", "m.onnx.data", "m.md"}


def test_weights_beside_go_where_the_new_ones_are_inside(large, tmp_path, monkeypatch):
    exported(tmp_path / "m.onnx", target="portable")
    monkeypatch.setattr(convert, "LARGEST_FILE", 1 << 30)
    exported(tmp_path / "m.onnx", target="portable")
    assert {f.name for f in tmp_path.iterdir()} == {"m.onnx", "m.md"}


def test_files_that_only_have_such_a_name_stay(tmp_path):
    exported(tmp_path / "m.onnx", seed=1, portable=False)
    exported(tmp_path / "m.portable.onnx", target="portable")
    for name in ("m.onnx_adapter", "m.onnx.data"):
        (tmp_path / name).write_text("somebody else's")
    before = {f.name for f in tmp_path.iterdir()}
    exported(tmp_path / "m.onnx", portable=False)
    assert {f.name for f in tmp_path.iterdir()} == before


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
    monkeypatch.setattr(maker, "verify", lambda *_, **__: Verification(problems=["because"]))
    with pytest.raises(exporters.VerificationError, match="because"):
        exporters.to_onnx(build("vit"), tmp_path / "model.onnx", target="portable")
    names = {"model.rejected.onnx", "model.rejected.onnx.data", "model.rejected.json"}
    assert {file.name for file in tmp_path.iterdir()} == names
    onnx.checker.check_model(tmp_path / "model.rejected.onnx")
    ort.InferenceSession(tmp_path / "model.rejected.onnx")
    report = json.loads((tmp_path / "model.rejected.json").read_text())
    assert report["files"][0]["verification"]["problems"] == ["because"]
