"""One base file, adapters of any kind and rank beside it, and every way of mixing them up refused."""

from __future__ import annotations

import copy
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import nn

import exporters
import surgery
from exporters.errors import ExportError
from exporters.hooks import expose
from exporters.inputs import collect
from exporters.learned import Learned
from tests.exporters.conftest import POLICY, adapt, lively


def check(session: exporters.AdapterSession, adapter: str | None, model: nn.Module) -> np.ndarray:
    inputs = collect(model).resized({"batch": 3}, seed=7)
    with torch.no_grad():
        expected = model(**inputs.kwargs)
    expected = expected if isinstance(expected, torch.Tensor) else next(iter(expected.values()))
    (found, *_) = session.run(inputs.feeds, adapter)
    np.testing.assert_allclose(found, expected, atol=1e-5 * float(expected.abs().max()))
    return found


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[nn.Module, nn.Module, Path]:
    folder = tmp_path_factory.mktemp("exported")
    base = lively("vit")
    nn.init.zeros_(base.head.bias)  # as a fresh head has it
    adapted = adapt(base, seed=1, adapter="srlora", rank=2)
    exporters.to_onnx(adapted, folder / "model.onnx", target="portable", adapters="runtime")
    return base, adapted, folder


@pytest.fixture
def served(exported, tmp_path) -> tuple[nn.Module, nn.Module, Path]:
    """The base, an adapted copy, and the files of it, each a test's own."""
    *models, folder = exported
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    return *copy.deepcopy(models), tmp_path


def test_base_and_adapters_of_other_kinds_and_ranks_from_one_file(build, tmp_path):
    base = build("vit")
    first = adapt(base, seed=1, adapter="srlora", rank=2)
    before = copy.deepcopy(first.state_dict())
    report = exporters.to_onnx(first, tmp_path / "model.onnx", adapters="runtime")
    assert all(torch.equal(before[key], value) for key, value in first.state_dict().items())
    names = {"model.onnx", "model.portable.onnx", "model.onnx_adapter", "model.md"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert report.fused == 2
    tried = {row.output for row in report.files[0].verification.parity}
    assert tried == {"output", "output with the adapter"}
    second = adapt(base, seed=2, adapter="lora", rank=5)
    exporters.write_adapter(second, tmp_path / "second.onnx_adapter")
    session = exporters.AdapterSession(
        tmp_path / "model.onnx", {"first": tmp_path / "model.onnx_adapter"}
    )
    session.add("second", tmp_path / "second.onnx_adapter")
    assert session.names == ("first", "second")
    outputs = [
        check(session, *pair) for pair in (("first", first), (None, base), ("second", second))
    ]
    assert not any(np.allclose(a, b, atol=1e-2) for a, b in pairwise(outputs))


@pytest.mark.parametrize(
    "name", ["bert", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt2", "beit"))]
)
def test_other_ways_of_reading_a_weight(name, build, tmp_path):
    base = build(name)
    adapted = adapt(base, seed=1, policy={**POLICY, "train": []}, rank=2)
    exporters.to_onnx(adapted, tmp_path / "model.onnx", target="portable", adapters="runtime")
    session = exporters.AdapterSession(
        tmp_path / "model.onnx", {"a": tmp_path / "model.onnx_adapter"}
    )
    check(session, "a", adapted)
    check(session, None, base)


def test_the_plain_runtime_sees_the_base(served):
    base, _, folder = served
    model = onnx.load(folder / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(folder / "model.onnx")
    assert [i.name for i in session.get_inputs()] == ["x"]
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = base(x)
    np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        ({**POLICY, "train": []}, "does not fill head"),
        (
            {**POLICY, "select": [{"roles": ["query", "output"]}]},
            "brings a value for blocks.0.attn",
        ),
    ],
)
def test_a_partial_adapter_and_one_with_more_are_refused(policy, reason, served):
    base, _, folder = served
    exporters.write_adapter(adapt(base, 3, policy, rank=2), folder / "odd.onnx_adapter")
    session = exporters.AdapterSession(folder / "model.onnx")
    with pytest.raises(ExportError, match=reason):
        session.add("odd", folder / "odd.onnx_adapter")
    assert session.names == ()


def test_an_adapter_of_another_base_is_refused(served):
    base, _, folder = served
    other = copy.deepcopy(base)
    with torch.no_grad():
        other.blocks[0].attn.qkv.weight[0, 0] += 1
    exporters.write_adapter(adapt(other, 3, rank=2), folder / "other.onnx_adapter")
    with pytest.raises(ExportError, match="other base weights"):
        exporters.AdapterSession(folder / "model.onnx", {"o": folder / "other.onnx_adapter"})


def test_an_adapter_of_another_shape_is_refused(served):
    _, _, folder = served
    content = ort.AdapterFormat.read_adapter(str(folder / "model.onnx_adapter"))
    values = {n: v.numpy() for n, v in content.get_parameters().items()}
    values["blocks.0.attn.qkv.weight_lora_A"] = np.zeros((7, 2), np.float32)
    changed = ort.AdapterFormat()
    changed.set_model_version(content.get_model_version())
    made = {n: ort.OrtValue.ortvalue_from_numpy(v) for n, v in values.items()}
    changed.set_parameters(made)
    changed.export_adapter(str(folder / "bad.onnx_adapter"))
    with pytest.raises(ExportError, match=r"_lora_A has shape \(7, 2\)"):
        exporters.AdapterSession(folder / "model.onnx", {"b": folder / "bad.onnx_adapter"})


def test_what_is_no_adapter_and_what_is_no_base(served):
    _, adapted, folder = served
    (folder / "text.onnx_adapter").write_text("hello")
    with pytest.raises(ExportError, match="cannot be read"):
        exporters.AdapterSession(folder / "model.onnx", {"t": folder / "text.onnx_adapter"})
    exporters.to_onnx(adapted, folder / "folded.onnx", target="portable")
    with pytest.raises(ExportError, match="takes no adapters"):
        exporters.AdapterSession(folder / "folded.onnx")


def test_an_adapter_that_is_not_loaded(served):
    _, _, folder = served
    session = exporters.AdapterSession(folder / "model.onnx", {"a": folder / "model.onnx_adapter"})
    with pytest.raises(ExportError, match="no adapter 'b'") as caught:
        session.run({"x": np.zeros((1, 3, 32, 32), np.float32)}, "b")
    assert caught.value.remedy == "loaded: a"


def test_a_wrong_adapter_is_found_and_nothing_is_handed_over(build, tmp_path, monkeypatch):
    from exporters import low_rank

    adapted = adapt(build("vit"), seed=1, rank=2)
    right = low_rank.joined
    wrong = lambda *args: tuple(1.1 * side for side in right(*args))  # noqa: E731
    monkeypatch.setattr("exporters.learned.joined", wrong)
    with pytest.raises(exporters.VerificationError, match="with the adapter differs"):
        exporters.to_onnx(adapted, tmp_path / "model.onnx", target="portable", adapters="runtime")
    assert not (tmp_path / "model.onnx").exists()
    assert not (tmp_path / "model.onnx_adapter").exists()


def test_running_statistics_that_moved_are_no_adapter(tmp_path):
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))
    surgery.apply(model, {"name": "one", "select": [{"modules": ["0"]}]}, rank=2)
    model.train()(torch.randn(9, 6))
    with pytest.raises(ExportError, match="one for all adapters"):
        exporters.write_adapter(model.eval(), tmp_path / "a.onnx_adapter")


def test_what_cannot_be_combined_is_refused(build, tmp_path):
    model = build("vit")
    with pytest.raises(surgery.errors.StateError, match="no policy is applied"):
        exporters.to_onnx(model, tmp_path / "model.onnx", adapters="runtime")
    with pytest.raises(ExportError, match="int8"):
        exporters.to_onnx(model, tmp_path / "model.onnx", adapters="runtime", precision="int8")
    assert list(tmp_path.iterdir()) == []


def test_a_trained_value_that_fusion_would_fold_is_fed(build, tmp_path):
    """LayerScale factors go into the weight before them, unless they are to be fed."""
    trained = adapt(build("dinov2"), 1, {**POLICY, "train": ["blocks.*.ls1.gamma"]}, rank=2)
    report = exporters.to_onnx(trained, tmp_path / "model.onnx", adapters="runtime")
    assert "2 layer scales were multiplied into weights" in report.notes  # ls2
    session = exporters.AdapterSession(
        tmp_path / "model.onnx", {"it": tmp_path / "model.onnx_adapter"}
    )
    check(session, "it", trained)


def test_a_trained_value_that_the_exporter_took_into_another_is_refused():
    graph = ir.Graph([], [], nodes=[], initializers=[])
    learned = Learned({}, {}, {"gone": torch.ones(2)}, 1, nn.Identity())
    with pytest.raises(ExportError, match="folded into another constant") as caught:
        expose(ir.Model(graph, ir_version=10), learned)
    assert caught.value.where == "gone"
