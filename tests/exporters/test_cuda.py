"""Files for CUDA where there is one: verified there, and what was fused runs there as what it was fused to."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
import transformers as hf
from torch import nn

import exporters
from exporters.causal import decoder_step
from exporters.inputs import collect
from exporters.parity import relative_error
from exporters.precision import TOLERANCES
from exporters.providers import CUDA
from exporters.runtime import recommended_options
from tests.exporters.conftest import adapt

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        CUDA not in ort.get_available_providers() or not torch.cuda.is_available(),
        reason="needs a CUDA device and onnxruntime-gpu",
    ),
]

OPERATORS = {
    "vit": "Attention",
    "bert": "Attention",
    "swin": "Attention",
    "llama": "MultiHeadAttention",
}


def ran(path: Path, feeds: Mapping[str, Any]) -> Counter[tuple[str, str]]:
    """How many nodes of a kind each provider ran in one call: (provider, operator)."""
    told = ort.SessionOptions()
    told.enable_profiling = True
    told.profile_file_prefix = str(path.with_suffix(""))
    options = recommended_options(path)
    session = ort.InferenceSession(path, told, providers=options.told())
    session.run(None, dict(feeds))
    events = json.loads(Path(session.end_profiling()).read_text())
    nodes = [event["args"] for event in events if event["name"].endswith("_kernel_time")]
    return Counter((node["provider"], node["op_name"]) for node in nodes)


def verified_here(report: exporters.ExportReport) -> bool:
    return not any("is not here" in note for note in report.notes)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", OPERATORS)
def test_every_site_runs_as_one_operator_on_the_device(name, precision, build, tmp_path):
    model = build(name)
    report = exporters.to_onnx(model, tmp_path / "model.onnx", target="cuda", precision=precision)
    fused = report.files[0]
    assert verified_here(report)
    assert report.fused == len(report.sites) > 0
    assert {count.op_type for count in fused.verification.operators} == {OPERATORS[name]}
    assert 0 < fused.error <= TOLERANCES[precision].error
    nodes = ran(fused.path, collect(model).resized({"batch": 3}).feeds)
    assert nodes[CUDA, OPERATORS[name]] == report.fused
    assert {kind for (provider, kind) in nodes if provider != CUDA} <= SHAPES


SHAPES = {
    "Shape",
    "Reshape",
    "Gather",
    "Concat",
    "Unsqueeze",
    "Squeeze",
    "Slice",
    "Mul",
    "Add",
    "Sub",
    "Div",
    "Cast",
    "Range",
}
"""What computes sizes: ONNX Runtime leaves it on the CPU on purpose."""


def test_products_that_no_operator_takes_are_joined(build, tmp_path):
    report = exporters.to_onnx(build("llama"), tmp_path / "model.onnx", target="cuda")
    assert verified_here(report)
    assert "query, key and value of 2 sites come from one matrix product, not from several" in (
        report.notes
    )
    nodes = ran(tmp_path / "model.onnx", collect(build("llama")).feeds)
    assert nodes[CUDA, "MultiHeadAttention"] == 2


def decoder() -> nn.Module:
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=64,
        vocab_size=96,
        max_position_embeddings=64,
    )
    model = hf.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    return model


@pytest.mark.parametrize(
    ("cache", "precision"), [(True, "fp16"), ("right", "fp16"), ("right", "fp32")]
)
def test_a_decoder_generates_what_the_model_generates(cache, precision, tmp_path):
    model = decoder()
    path = tmp_path / "model.onnx"
    report = exporters.to_onnx(model, path, target="cuda", precision=precision, cache=cache)
    assert verified_here(report)
    assert report.fused == len(report.sites) == 2
    assert report.files[0].verification.top1 == 1.0
    prompt = np.array([[5, 9, 7]])
    dtype = np.float16 if precision == "fp16" else np.float32
    past = decoder_step(model, cache).past(1)
    cached = {name: value.numpy().astype(dtype) for name, value in past.items()}
    feeds = {"input_ids": prompt, "attention_mask": np.ones_like(prompt), **cached}
    nodes = ran(path, feeds)
    # Its CUDA kernel takes half precision alone; in fp32 the operator runs on the CPU.
    place = CUDA if precision == "fp16" else "CPUExecutionProvider"
    assert nodes[place, "GroupQueryAttention"] == 2


def error(session: exporters.AdapterSession, adapter: str | None, model: nn.Module) -> float:
    inputs = collect(model).resized({"batch": 3}, seed=7)
    with torch.no_grad():
        expected = model(**inputs.kwargs).numpy()
    return relative_error(expected, session.run(inputs.feeds, adapter)[0])


@pytest.mark.parametrize("kind", ["lora", "symlora", "srlora"])
def test_adapters_are_exchanged_at_run_time(kind, build, tmp_path):
    base = build("vit")
    nn.init.zeros_(base.head.bias)  # as a fresh head has it
    first, second = (adapt(base, seed, adapter=kind, rank=rank) for seed, rank in ((1, 2), (2, 5)))
    path = tmp_path / "model.onnx"
    report = exporters.to_onnx(first, path, target="cuda", adapters="runtime")
    assert verified_here(report)
    exporters.write_adapter(second, tmp_path / "second.onnx_adapter")
    session = exporters.AdapterSession(path, {"first": path.with_suffix(".onnx_adapter")})
    session.add("second", tmp_path / "second.onnx_adapter")
    for adapter, model in (("first", first), (None, base), ("second", second), ("first", first)):
        assert error(session, adapter, model) < 1e-5
    assert error(session, "second", first) > 1e-2


def test_io_binding_ignores_adapters_there_too(build, tmp_path):
    """Why ``AdapterSession`` offers none; once this fails, it may."""
    model = adapt(build("vit"), 1, adapter="lora", rank=2)
    path = tmp_path / "model.onnx"
    exporters.to_onnx(model, path, target="cuda", adapters="runtime")
    session = exporters.open_session(path)
    adapter, options = ort.LoraAdapter(), ort.RunOptions()
    adapter.Load(str(path.with_suffix(".onnx_adapter")))
    options.add_active_adapter(adapter)
    feeds = collect(model).feeds
    binding = session.io_binding()
    for name, value in feeds.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(value, "cuda", 0))
    binding.bind_output("output", "cuda", 0)
    session.run_with_iobinding(binding, options)
    (bound,) = binding.copy_outputs_to_cpu()
    (base,) = session.run(None, feeds)
    (with_it,) = session.run(None, feeds, options)
    np.testing.assert_allclose(bound, base, atol=1e-5)
    assert not np.allclose(with_it, base, atol=1e-2)
