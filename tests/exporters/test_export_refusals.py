"""Bad input: a clear error before anything is written, the model and the disk left as they were."""

from __future__ import annotations

import errno
import os

import pytest
import torch
from torch import nn

import exporters
from exporters import convert, providers, staging
from exporters.errors import ExportError
from surgery.errors import CaptureError, StateError, SurgeryError


def refused(tmp_path, model, *args, **kwargs) -> SurgeryError:
    before = sorted(tmp_path.rglob("*"))
    path = kwargs.pop("path", tmp_path / "model.onnx")
    with pytest.raises(SurgeryError) as caught:
        exporters.to_onnx(model, path, *args, **kwargs)
    assert sorted(tmp_path.rglob("*")) == before
    assert caught.value.remedy
    return caught.value


def test_a_folder_that_does_not_exist(build, tmp_path):
    error = refused(tmp_path, build("vit"), path=tmp_path / "nowhere" / "model.onnx")
    assert isinstance(error, ExportError)
    assert "nowhere" in str(error)


def test_a_path_that_is_a_folder(build, tmp_path):
    (tmp_path / "model.onnx").mkdir()
    assert "directory" in str(refused(tmp_path, build("vit")))


def test_a_folder_in_the_place_of_a_parent(build, tmp_path):
    (tmp_path / "file").write_text("a file, not a folder")
    refused(tmp_path, build("vit"), path=tmp_path / "file" / "model.onnx")


@pytest.mark.parametrize(
    "path", ["model.md", "model.json", "model.onnx_adapter", "model", ".onnx", "", "/", None, 5]
)
@pytest.mark.parametrize("adapters", ["fold", "runtime"])
def test_a_path_that_names_no_onnx_file(path, adapters, build, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    error = refused(tmp_path, build("vit"), path=path, adapters=adapters)
    assert ".onnx" in str(error.remedy)


@pytest.mark.parametrize("name", ["model.onnx", "model.portable.onnx"])
def test_an_existing_file_is_kept(name, build, tmp_path):
    (tmp_path / name).write_text("precious")
    error = refused(tmp_path, build("vit"))
    assert "overwrite=True" in str(error)
    assert (tmp_path / name).read_text() == "precious"


def test_an_existing_file_is_replaced_when_asked(build, tmp_path):
    (tmp_path / "model.onnx").write_text("old")
    exporters.to_onnx(build("vit"), tmp_path / "model.onnx", target="portable", overwrite=True)
    assert len((tmp_path / "model.onnx").read_bytes()) > 1000


def test_the_path_is_looked_at_before_the_expensive_work(build, tmp_path, monkeypatch):
    monkeypatch.setattr(exporters.export, "capture", lambda *_: pytest.fail("captured already"))
    refused(tmp_path, build("vit"), path=tmp_path / "nowhere" / "model.onnx")


def test_a_model_in_train_mode(build, tmp_path):
    model = build("vit")
    model.blocks[1].train()
    error = refused(tmp_path, model)
    assert error.where == "blocks.1"
    assert "model.eval()" in str(error)


def test_weights_that_are_not_finite(build, tmp_path):
    model = build("vit")
    with torch.no_grad():
        model.blocks[0].mlp.fc1.weight[3, 4] = float("nan")
    error = refused(tmp_path, model)
    assert error.where == "blocks.0.mlp.fc1.weight"


def test_an_unknown_target(build, tmp_path):
    assert "tpu" in str(refused(tmp_path, build("vit"), target="tpu"))


def test_nothing_to_write(build, tmp_path):
    error = refused(tmp_path, build("vit"), target="portable", portable=False)
    assert isinstance(error, ExportError)


@pytest.mark.parametrize(
    "inputs",
    [
        {"pixels": torch.zeros(2, 3, 32, 32)},
        (torch.zeros(2, 3, 32, 32), 1, 2, 3),
        {"x": [torch.zeros(2, 3, 32, 32)]},
        {"x": None},
    ],
)
def test_example_inputs_that_do_not_fit_the_call(inputs, build, tmp_path):
    assert isinstance(refused(tmp_path, build("vit"), example_inputs=inputs), ExportError)


def test_example_inputs_of_another_shape(build, tmp_path):
    error = refused(tmp_path, build("vit"), example_inputs=torch.zeros(2, 3, 99, 99))
    assert isinstance(error, CaptureError)


@pytest.mark.parametrize(
    ("values", "reason"),
    [(torch.zeros(0, 3, 32, 32), "no value"), (torch.full((2, 3, 32, 32), torch.nan), "NaN")],
)
def test_example_inputs_that_show_nothing(values, reason, build, tmp_path):
    assert reason in str(refused(tmp_path, build("vit"), example_inputs=values))


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_example_inputs_of_another_dtype(dtype, tmp_path):
    model = torch.nn.Linear(4, 3).eval()
    error = refused(tmp_path, model, example_inputs=torch.zeros(2, 4, dtype=dtype))
    assert "does not take the example inputs" in str(error)
    assert "dynamic=" not in error.remedy


def test_example_inputs_without_values(tmp_path):
    model = torch.nn.Linear(4, 3).eval()
    error = refused(tmp_path, model, example_inputs=torch.zeros(2, 4, device="meta"))
    assert "no value" in str(error)


def test_samples_are_called_so(build, tmp_path):
    error = refused(tmp_path, build("vit"), samples={"pixels": torch.zeros(2, 3, 32, 32)})
    assert "samples=" in error.remedy and "example" not in str(error)


def test_a_name_that_no_axis_can_have(build, tmp_path):
    error = refused(tmp_path, build("vit"), dynamic={"x": {0: "my batch"}})
    assert "'my batch' is no name" in error.why


def test_options_are_looked_at_first(tmp_path):
    assert refused(tmp_path, "no model", labels="abc").where == "labels"


@pytest.mark.parametrize("name", ["a" * 250 + ".onnx", "null\0byte.onnx"])
def test_a_name_that_no_file_can_have(name, build, tmp_path):
    assert isinstance(refused(tmp_path, build("vit"), path=tmp_path / name), ExportError)


def test_what_is_no_model(tmp_path):
    assert "str is no model" in str(refused(tmp_path, "model"))


def test_samples_of_another_shape(build, tmp_path):
    assert "samples" in str(refused(tmp_path, build("vit"), samples=torch.zeros(4, 1, 2)))


@pytest.mark.parametrize("axes", [{"y": {0: "batch"}}, {"x": {7: "batch"}}, {"x": {0: "a batch"}}])
def test_dynamic_axes_that_do_not_exist(axes, build, tmp_path):
    assert "x (2, 3, 32, 32)" in str(refused(tmp_path, build("vit"), dynamic=axes))


def test_one_name_for_two_sizes(build, tmp_path):
    error = refused(tmp_path, build("vit"), dynamic={"x": {0: "same", 1: "same"}})
    assert "same is 2 in x and 3 here" in str(error)


def test_a_model_that_fixes_its_batch(tmp_path):
    class Fixed(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(2, 8) * 2

    error = refused(tmp_path, Fixed().eval(), example_inputs=torch.zeros(2, 8))
    assert "one batch size" in str(error)


def test_a_model_that_returns_no_tensor(tmp_path):
    class Silent(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, object]:
            return {"loss": None, "name": "silent"}

    error = refused(tmp_path, Silent().eval(), example_inputs=torch.zeros(2, 8))
    assert "returns no tensor" in str(error)


@pytest.mark.parametrize("value", [float("nan"), {"deep": [float("inf")]}])
def test_metadata_that_only_python_reads(value, build, tmp_path):
    assert refused(tmp_path, build("vit"), metadata={"a": value}).where == "a"


def test_metadata_that_is_no_json(build, tmp_path):
    assert "accuracy" in str(refused(tmp_path, build("vit"), metadata={"accuracy": torch.ones(1)}))


def test_a_wrapped_model(build, tmp_path):
    refused_ = refused(tmp_path, torch.nn.DataParallel(build("vit")).eval())
    assert isinstance(refused_, StateError)


@pytest.mark.parametrize("installed", [set(), {"onnxruntime", "onnxruntime-gpu"}])
def test_onnx_runtime_missing_or_doubled(installed, build, tmp_path, monkeypatch):
    monkeypatch.setattr(providers, "_version", lambda name: "1.30" if name in installed else None)
    error = refused(tmp_path, build("vit"))
    assert "model-surgery[cpu]" in str(error)
    assert ("twice" if installed else "not installed") in str(error)


@pytest.mark.parametrize("installed", [set(), {"onnxruntime", "onnxruntime-gpu"}])
def test_nor_is_a_file_opened_then(installed, tmp_path, monkeypatch):
    monkeypatch.setattr(providers, "_version", lambda name: "1.30" if name in installed else None)
    with pytest.raises(ExportError, match="twice" if installed else "not installed"):
        exporters.open_session(tmp_path / "model.onnx")


def test_a_disk_that_fills_up_leaves_nothing(build, tmp_path, monkeypatch):
    def full(model, path, *_):
        path.write_bytes(b"half a file")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(convert, "save", full)
    assert "No space left" in str(refused(tmp_path, build("vit")))


def test_a_failure_while_moving_keeps_the_old_file(build, tmp_path, monkeypatch):
    def failing(source, target):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    (tmp_path / "model.onnx").write_text("precious")
    monkeypatch.setattr(staging.os, "replace", failing)
    refused(tmp_path, build("vit"), target="portable", overwrite=True)
    assert (tmp_path / "model.onnx").read_text() == "precious"


@pytest.mark.parametrize("kind", ["parameters", "buffers"])
def test_a_model_without_weights(kind, tmp_path):
    model = nn.BatchNorm1d(4, affine=kind == "parameters", track_running_stats=kind == "buffers")
    with pytest.raises(ExportError, match="no weights"):
        exporters.to_onnx(
            model.to("meta").eval(), tmp_path / "m.onnx", example_inputs=torch.randn(2, 4)
        )


@pytest.mark.parametrize("part", [False, True])
def test_a_model_without_code(part, tmp_path):
    model = torch.jit.script(nn.Linear(4, 3).eval())
    model = nn.Sequential(model).eval() if part else model
    with pytest.raises(ExportError, match="TorchScript"):
        exporters.to_onnx(model, tmp_path / "model.onnx", example_inputs=torch.randn(2, 4))


@pytest.mark.parametrize("providers", [(), "CPUExecutionProvider"])
def test_session_options_name_a_provider(providers):
    with pytest.raises(ExportError, match="without an execution provider"):
        exporters.SessionOptions(providers=providers)


def test_a_second_provider_that_is_not_there_is_refused_too(tmp_path):
    exporters.to_onnx(
        nn.Linear(4, 3).eval(),
        tmp_path / "m.onnx",
        target="portable",
        example_inputs=torch.randn(2, 4),
    )
    options = exporters.SessionOptions(("CPUExecutionProvider", "NoneExecutionProvider"))
    with pytest.raises(ExportError, match="NoneExecutionProvider is not available"):
        exporters.open_session(tmp_path / "m.onnx", options=options)


def test_int8_is_for_cpus(build, tmp_path):
    with pytest.raises(ExportError, match="int8 and CUDA"):
        exporters.to_onnx(build("vit"), tmp_path / "m.onnx", target="cuda", precision="int8")


def test_the_users_example_keeps_no_mark_of_a_failed_export(tmp_path):
    class Asks(nn.Module):
        def forward(self, x):
            return x * 2 if x.sum() > 0 else x

    x = torch.randn(2, 4)
    with pytest.raises(CaptureError):
        exporters.to_onnx(
            Asks().eval(), tmp_path / "m.onnx", example_inputs=x, dynamic={"x": {0: "rows"}}
        )
    assert vars(x) == {}
