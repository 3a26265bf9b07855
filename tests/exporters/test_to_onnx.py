"""The whole way out: models in, verified files out, checked here once more without our own code."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import timm
import torch
from torch import Tensor, nn

import exporters
import surgery.operations.apply as operations
from exporters.errors import ExportError
from exporters.fuse import Site
from exporters.inputs import collect
from tests.exporters.conftest import lively

FUSED = {"vit": 2, "swin": 3, "bert": 2}
FUSED_TOO = {
    "beit": 2,
    "gpt2": 2,
    "hf-vit": 2,
    "deit3": 2,
    "dinov2": 2,
    "hf-beit": 2,
    "clip-vision": 2,
    "clip-text": 2,
    "albert": 2,
}
SCORES_FUSED = {"siglip-vision": 1}
SCORES_FUSED_TOO = {"eva02": 2, "t5": 1}


def count(path: Path, operator: str = "Attention") -> int:
    nodes = onnx.load(path).graph.node
    return sum((n.domain, n.op_type) == ("com.microsoft", operator) for n in nodes)


def check_parity(model, path: Path) -> None:
    """Sizes that verification did not try."""
    inputs = collect(model).resized({"batch": 3, "sequence": 11, "decoder_sequence": 11}, seed=42)
    with torch.no_grad():
        expected = model(**inputs.kwargs)
    expected = expected if isinstance(expected, torch.Tensor) else next(iter(expected.values()))
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found, *_) = session.run(None, inputs.feeds)
    assert found.shape == tuple(expected.shape)
    np.testing.assert_allclose(found, expected, atol=1e-5 * float(expected.abs().max()))


@dataclass(frozen=True)
class Exported:
    """A model of the zoo, what it held before it was exported, and where the files lie; tests only read it."""

    model: nn.Module
    before: dict[str, Tensor]
    report: exporters.ExportReport
    path: Path


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Exports a model with all defaults, once for all tests."""

    @cache
    def make(name: str) -> Exported:
        model, path = lively(name), tmp_path_factory.mktemp(name) / "model.onnx"
        before = {key: value.clone() for key, value in model.state_dict().items()}
        random_state = torch.get_rng_state()
        report = exporters.to_onnx(model, path)
        assert torch.equal(random_state, torch.get_rng_state())
        return Exported(model, before, report, path)

    return make


def sample(quick: dict[str, int], slow: dict[str, int]) -> list[Any]:
    """One of each kind always, its relatives among the slow tests."""
    return [*quick.items(), *(pytest.param(*item, marks=pytest.mark.slow) for item in slow.items())]


@pytest.mark.parametrize(("name", "sites"), sample(FUSED, FUSED_TOO))
def test_every_site_is_fused_and_both_files_compute_what_the_model_computes(name, sites, exported):
    made = exported(name)
    folder, report = made.path.parent, made.report
    assert {file.name for file in folder.iterdir()} == {
        "model.onnx",
        "model.portable.onnx",
        "model.md",
    }
    assert count(made.path) == sites == report.fused
    assert count(folder / "model.portable.onnx") == 0
    assert report.passed
    for file in report.files:
        check_parity(made.model, file.path)
        assert file.error <= 1e-5
        assert {row.sizes["batch"] for row in file.verification.parity} == {1, 2, 5}


@pytest.mark.parametrize(("name", "sites"), sample(SCORES_FUSED, SCORES_FUSED_TOO))
def test_where_more_than_projections_makes_the_operands_they_are_taken_as_they_are(
    name, sites, build, tmp_path
):
    model = build(name)
    report = exporters.to_onnx(model, tmp_path / "model.onnx")
    assert count(tmp_path / "model.onnx", "MultiHeadAttention") == sites
    assert report.fused == len(report.sites)
    check_parity(model, tmp_path / "model.onnx")


def test_what_cannot_be_fused_is_exported_all_the_same_and_the_reason_is_told(exported):
    made = exported("cait")
    mixed, single = made.report.sites
    assert mixed.operator is None
    assert "scores pass through linear" in mixed.reason
    assert single == Site(single.module, "MultiHeadAttention", None)
    check_parity(made.model, made.path)


def test_an_attention_without_bias_gets_zeros(tmp_path):
    """Up to ONNX Runtime 1.31 the CPU's operator reads one, and the process dies where there is none."""
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, qkv_bias=False).eval()
    exporters.to_onnx(model, tmp_path / "model.onnx")
    nodes = onnx.load(tmp_path / "model.onnx").graph.node
    (bias,) = (node.input[2] for node in nodes if node.op_type == "Attention")
    held = {t.name: t for t in onnx.load(tmp_path / "model.onnx").graph.initializer}
    assert not onnx.numpy_helper.to_array(held[bias]).any()
    check_parity(model, tmp_path / "model.onnx")


def test_the_users_model_stays_as_it_was(exported):
    made = exported("bert")
    after = made.model.state_dict()
    assert made.before.keys() == after.keys()
    assert all(torch.equal(made.before[name], after[name]) for name in after)
    assert not any(module.training for module in made.model.modules())
    assert all(parameter.requires_grad for parameter in made.model.parameters())


def test_an_adapted_model_is_folded_in_a_copy(build, tmp_path):
    model = build("vit")
    operations.apply(model, "vit-attn-qv", rank=2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "adapters" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.eval()
    keys = set(model.state_dict())
    report = exporters.to_onnx(model, tmp_path / "model.onnx")
    assert report.fused == 2
    assert set(model.state_dict()) == keys
    assert any("vit-attn-qv" in note for note in report.notes)
    check_parity(model, tmp_path / "model.onnx")


def test_half_precision_is_exported_as_fp32(build, tmp_path):
    model = build("vit").to(torch.bfloat16)
    report = exporters.to_onnx(model, tmp_path / "model.onnx", target="portable")
    assert model.cls_token.dtype is torch.bfloat16
    assert any("fp32" in note for note in report.notes)
    (found,) = onnx.load(tmp_path / "model.onnx").graph.output
    assert found.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_a_portable_file_holds_standard_operators_and_how_to_use_it_and_nothing_of_this_machine(
    build, tmp_path
):
    model, path = build("vit"), tmp_path / "model.onnx"
    about = {"labels": [f"class {i}" for i in range(7)], "accuracy": {"top-1": 0.5}}
    samples = torch.randn(6, 3, 32, 32)
    report = exporters.to_onnx(model, path, target="portable", samples=samples, **about)
    assert {file.name for file in tmp_path.iterdir()} == {"model.onnx", "model.md"}
    assert [file.target for file in report.files] == ["portable"]
    assert report.files[0].verification.top1 == 1.0
    loaded = onnx.load(path)
    assert {node.domain for node in loaded.graph.node} == {""}
    assert {(o.domain, o.version) for o in loaded.opset_import} == {("", 20)}
    facts = {
        p.key.removeprefix("model_surgery."): json.loads(p.value) for p in loaded.metadata_props
    }
    assert about.items() <= facts.items()
    assert facts["preprocessing"]["input_size"] == [3, 32, 32]
    assert facts["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
    assert facts["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert facts["session_options"]["providers"] == ["CPUExecutionProvider"]
    assert not any(node.metadata_props or node.doc_string for node in loaded.graph.node)
    content = path.read_bytes()
    assert b"pkg.torch" not in content
    assert str(Path(torch.__file__).parents[1]).encode() not in content


def test_further_metadata_hides_nothing(build, tmp_path):
    with pytest.raises(ExportError, match="hide"):
        exporters.to_onnx(build("vit"), tmp_path / "m.onnx", metadata={"accuracy": 0.5})
    assert not list(tmp_path.iterdir())


def test_axes_and_outputs_have_names(exported):
    graph = onnx.load(exported("bert").path.with_name("model.portable.onnx")).graph
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert shapes == {
        "input_ids": ["batch", "sequence"],
        "attention_mask": ["batch", "sequence"],
        "logits": ["batch", 3],
    }


def test_dynamic_false_fixes_every_shape(build, tmp_path):
    path = tmp_path / "model.onnx"
    given = torch.randn(1, 3, 32, 32)
    report = exporters.to_onnx(build("vit"), path, example_inputs=given, dynamic=False)
    (shape,) = [i.type.tensor_type.shape for i in onnx.load(path).graph.input]
    assert [d.dim_value for d in shape.dim] == [1, 3, 32, 32]
    assert report.fused == 2


def test_the_portable_file_can_be_left_out(build, tmp_path):
    model = build("vit")
    report = exporters.to_onnx(model, tmp_path / "model.onnx", portable=False)
    assert {file.name for file in tmp_path.iterdir()} == {"model.onnx", "model.md"}
    assert [file.target for file in report.files] == ["cpu"]
    assert report.fused == 2
    check_parity(model, tmp_path / "model.onnx")


def test_a_model_without_attention_is_exported_too(build, tmp_path):
    report = exporters.to_onnx(build("resnet"), tmp_path / "model.onnx")
    assert report.sites == ()
    assert report.passed


def test_the_report_is_data_text_and_table(exported):
    from rich.console import Console

    report = exported("cait").report
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["attention"] == {
        "sites": 2,
        "fused": 1,
        "unfused": [{"module": s.module, "reason": s.reason} for s in report.sites[:1]],
    }
    assert [file["target"] for file in plain["files"]] == ["cpu", "portable"]
    assert plain["files"][0]["bytes"] == exported("cait").path.stat().st_size
    assert "1 of 2 attention sites fused" in str(report)
    console = Console(width=200, record=True, file=StringIO())
    console.print(report)
    shown = console.export_text()
    assert "model.portable.onnx" in shown
    assert "scores pass through linear" in shown


def test_a_session_opens_with_the_options_that_the_file_recommends(exported, tmp_path):
    made = exported("bert")
    options = made.report.files[0].session_options
    assert options.disabled_optimizers == ("SkipLayerNormFusion",)
    target = tmp_path / "optimized.onnx"
    exporters.open_session(made.path, save_optimized=target)
    run = {node.op_type for node in onnx.load(target, load_external_data=False).graph.node}
    assert "SkipLayerNormalization" not in run
    assert "Attention" in run


class Clipped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.register_buffer("low", torch.tensor(-0.5))
        self.register_buffer("high", torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        bounds = self.low, self.high
        return torch.clamp(self.linear(torch.clamp(x, *bounds)), *bounds)


class ClippedTwice(nn.Module):
    """onnxscript joins the Clips of what several layers read, and forgets bounds."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([Clipped(), Clipped(), Clipped()])

    def forward(self, x: Tensor) -> Tensor:
        x = torch.clamp(x, self.parts[0].low, self.parts[0].high)
        return sum(part(x) for part in self.parts)


def test_bounds_that_clips_share_are_in_the_file(tmp_path):
    exporters.to_onnx(
        ClippedTwice().eval(), tmp_path / "model.onnx", example_inputs=torch.randn(4, 8)
    )
