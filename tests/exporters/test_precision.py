"""Fewer bits: what the file holds, what it costs, and who may run it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
import transformers
from torch import Tensor, nn

import exporters
from exporters import precision as precisions
from exporters.errors import ExportError
from exporters.parity import relative_error
from exporters.providers import CPU, CUDA, require_providers
from exporters.runtime import SessionOptions, available, open_session
from tests.exporters.calls import Calls


def elements(path) -> set[int]:
    graph = onnx.load(path).graph
    return {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}


def test_int8_quantises_every_matrix_product_and_says_what_it_costs(build, tmp_path):
    model = build("vit")  # which seeds, so that the samples are the same ones each time
    samples = torch.randn(8, 3, 32, 32)
    report = exporters.to_onnx(model, tmp_path / "model.onnx", precision="int8", samples=samples)
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
        require_providers([CUDA, CPU], [CPU])  # built in, but its libraries did not load
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


def waves(angles: Tensor) -> Tensor:
    return torch.cat([angles.sin(), angles.cos()], -1)


def frequencies() -> Tensor:
    return 10_000 ** -(torch.arange(16) / 16)


ANGLES = {
    "multiplied": lambda t: waves(t[:, None].float() * frequencies()),
    "outer product": lambda t: waves(t[:, None].float() @ frequencies()[None]),
    "counted": lambda t: (
        waves(torch.arange(t.shape[0])[:, None].float() * frequencies()) + t[:, None]
    ),
    "powers in the graph": lambda t: waves(
        t[:, None] * 10_000.0 ** -(torch.arange(t.shape[0]).float() / t.shape[0])
    ),
}


@pytest.mark.parametrize("fed", [torch.int64, torch.float32])
@pytest.mark.parametrize("kind", ANGLES)
def test_in_16_bits_angles_are_exact_far_from_the_start(kind, fed, tmp_path):
    model = Calls(ANGLES[kind]).eval()
    path = tmp_path / "model.onnx"
    given = torch.arange(1, 6).to(fed)
    exporters.to_onnx(model, path, target="portable", precision="fp16", example_inputs=given)
    far = torch.arange(0, 3000, 3) if kind != "counted" else torch.zeros(3000)
    (found,) = open_session(path).run(None, {"x": far.to(fed).numpy()})
    assert np.abs(found - model(far.to(fed)).numpy()).max() < 1e-3


class Embedded(nn.Module):
    """A timestep embedding by a product, and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", frequencies()[None])
        self.layer = nn.Linear(32, 4)

    def forward(self, t: Tensor) -> Tensor:
        return self.layer(waves(t[:, None].float() @ self.frequencies))


def test_in_8_bits_positions_are_not_quantised(tmp_path):
    torch.manual_seed(0)
    model, path = Embedded().eval(), tmp_path / "model.onnx"
    given, far = torch.arange(1, 6), torch.arange(0, 4000, 7)
    report = exporters.to_onnx(
        model, path, target="portable", precision="int8", example_inputs=given
    )
    assert any("1 of 2 matrix products" in note for note in report.notes)
    (found,) = open_session(path).run(None, {"t": far.numpy()})
    assert relative_error(model(far).detach().numpy(), found) < 0.02


def test_a_decoder_in_16_bits_holds_far_from_the_start(tmp_path):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=96, max_position_embeddings=2048, initializer_range=0.2,
    )  # fmt: skip
    model, path = transformers.LlamaForCausalLM(config).eval(), tmp_path / "model.onnx"
    exporters.to_onnx(model, path, cache=True, precision="fp16", portable=False)
    ids = torch.randint(96, (1, 1500))
    past = np.zeros((1, 1, 0, 32), np.float16)
    feeds = {"input_ids": ids.numpy(), "attention_mask": np.ones_like(ids.numpy())}
    feeds |= {f"past_key_values.0.{name}": past for name in ("key", "value")}
    found = open_session(path).run(None, feeds)[0]
    with torch.no_grad():
        assert relative_error(model(ids).logits.numpy(), found) < 1e-2


class Waving(nn.Module):
    """Sines of places, of a layer behind them, and of embedded tokens behind a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(2, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.embedded = nn.Embedding(5, 8)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return self.second(self.first(x).sin()).sin() + self.third(self.embedded(ids)).sin()


def test_sines_of_activations_are_halved_like_any_other(tmp_path):
    path = tmp_path / "model.onnx"
    inputs = {"x": torch.randn(3, 2), "ids": torch.arange(3)}
    exporters.to_onnx(
        Waving().eval(), path, target="portable", precision="fp16", example_inputs=inputs
    )
    halved = {
        tensor.name
        for tensor in onnx.load(path).graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT16
    }
    assert {"second.weight", "third.weight", "embedded.weight"} <= halved
    assert "first.weight" not in halved
