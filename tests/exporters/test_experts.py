"""Mixtures of experts reach ONNX Runtime in standard operators, in every precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.integrations import moe  # noqa: F401 - makes the operator known to torch

import exporters
from exporters.capture import capture
from exporters.convert import to_ir
from exporters.inputs import collect
from exporters.precision import lower

EXPERTS, WIDTH, OUT = 5, 6, 4
GROUPED = torch.ops.transformers.grouped_mm_fallback


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(EXPERTS, WIDTH, OUT))

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        return GROUPED(x, self.weight, ends) + 1


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    torch.manual_seed(0)
    model = Grouped().eval()
    example = (torch.randn(7, WIDTH), torch.tensor([2, 2, 4, 7, 7], dtype=torch.int32))
    axes: Any = {"x": {0: "rows"}}
    path = tmp_path_factory.mktemp("grouped") / "model.onnx"
    ir.save(to_ir(capture(model, collect(model, example, axes))), path)
    return model, path


@given(counts=st.lists(st.integers(0, 4), min_size=EXPERTS, max_size=EXPERTS))
def test_each_row_meets_its_expert(grouped: tuple[nn.Module, Path], counts: list[int]) -> None:
    """However tokens are spread: experts without any, and one with all."""
    counts[0] += not sum(counts)
    model, path = grouped
    x = torch.randn(sum(counts), WIDTH)
    ends = torch.tensor(counts).cumsum(0).int()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": x.numpy(), "ends": ends.numpy()})
    np.testing.assert_allclose(found, model(x, ends).detach().numpy(), atol=1e-5)


def test_the_file_holds_standard_operators_and_one_loop_a_product(
    grouped: tuple[nn.Module, Path],
) -> None:
    model = onnx.load(grouped[1])
    onnx.checker.check_model(model, full_check=True)
    assert {entry.domain for entry in model.opset_import} == {""}
    assert not model.functions
    assert sum(node.op_type == "Loop" for node in model.graph.node) == 1


def mixtral(chosen: int) -> nn.Module:
    torch.manual_seed(0)
    config = hf.MixtralConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=60, num_local_experts=EXPERTS, num_experts_per_tok=chosen,
    )  # fmt: skip
    return hf.MixtralForCausalLM(config).eval()


@pytest.mark.parametrize("precision", ["fp16", pytest.param("int8", marks=pytest.mark.slow)])
def test_a_mixture_is_exported_fused_and_verified(precision, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    # Rounded to half precision, an untrained router chooses other experts: let it choose all.
    model = mixtral(EXPERTS if precision == "fp16" else 2)
    report = exporters.to_onnx(model, path, precision=precision)
    assert report.fused == len(report.sites) == 1
    loops = [node for node in onnx.load(path).graph.node if node.op_type == "Loop"]
    assert len(loops) == 2


@settings(max_examples=5)
@given(counts=st.lists(st.integers(0, 3000), min_size=1, max_size=6))
def test_half_precision_counts_exactly(counts: list[int], tmp_path_factory) -> None:
    """Tokens are counted in floating point, in bins whose edges half precision does not hold."""
    model = Counting(len(counts)).eval()
    tokens = torch.cat([torch.full((n,), i) for i, n in enumerate([*counts, 1])])[None]
    path = tmp_path_factory.mktemp("counting") / "model.onnx"
    translated, _ = lower(
        to_ir(capture(model, collect(model, (tokens, torch.ones(1)), dynamic=False))), "fp16"
    )
    ir.save(translated, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found, _ = session.run(None, {"tokens": tokens.numpy(), "x": np.ones(1, np.float32)})
    assert found.tolist() == [*counts, 1]


class Counting(nn.Module):
    def __init__(self, bins: int) -> None:
        super().__init__()
        self.last = bins

    def forward(self, tokens: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        counted = torch.histc(tokens.float(), bins=self.last + 1, min=0, max=self.last)
        return counted.int(), x * 2.0
