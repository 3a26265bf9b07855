"""RMS norms reach ONNX Runtime as one operator, in standard and in fused files, also in half precision."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnxruntime
import pytest
import torch
import transformers as hf
from packaging.version import Version
from timm.layers import RmsNorm
from torch import Tensor, nn

import exporters
from exporters.runtime import optimized_operators, recommended_options


class ByHand(nn.Module):
    """As transformers writes it, beside a reciprocal that something else reads too."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(32) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        root = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        other = torch.rsqrt(x.abs().sum(-1, keepdim=True) + 1.0)
        return self.weight * (x * root) + other * x + other


NORMS = {"by hand": ByHand, "torch": lambda: nn.RMSNorm(32), "timm": lambda: RmsNorm(32)}
TYPES = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL)),
    "gemma2": lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**SMALL, head_dim=16)),
}
SMALL = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 128,
}  # fmt: skip


def runs(path: Path) -> Counter[str]:
    """Operators that ONNX Runtime really runs."""
    return Counter(
        {kind: n for (_, kind), n in optimized_operators(path, recommended_options(path)).items()}
    )


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_is_one_operator(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    model = nn.Sequential(nn.Linear(32, 32), NORMS[name](), nn.Linear(32, 3)).eval()
    exporters.to_onnx(model, path, example_inputs=torch.randn(4, 32), target="portable")
    found = runs(path)
    assert found["SimplifiedLayerNormalization"] == 1 and found["ReduceMean"] == 0


HALVES_ARE_FUSED = Version(onnxruntime.__version__) >= Version("1.32")
"""On CPUs; 1.22 leaves norms in half precision in pieces."""


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        pytest.param("gemma2", "fp32", marks=pytest.mark.slow),
        pytest.param(
            "llama",
            "fp16",
            marks=pytest.mark.skipif(not HALVES_ARE_FUSED, reason="older ONNX Runtime"),
        ),
    ],
)
def test_every_norm_of_a_language_model_is(name: str, precision, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    model = TYPES[name]().eval()
    norms = sum(type(m).__name__.endswith("RMSNorm") for m in model.modules())
    exporters.to_onnx(model, path, precision=precision)
    found = runs(path)
    fused = ("SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization")
    assert sum(found[kind] for kind in fused) == norms and found["ReduceMean"] == 0
