"""New constants find names that the model has not taken."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import exporters
from exporters.capture import capture
from exporters.editor import Editor
from exporters.inputs import collect

X = torch.randn(2, 5, 16)


class Attention(nn.Module):
    """Its fused projection is called what the operator's weight would be called."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.Linear(16, 48)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.attention(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4).unbind()
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def test_a_projection_that_is_called_attention(tmp_path: Path) -> None:
    report = exporters.to_onnx(Attention().eval(), tmp_path / "m.onnx", example_inputs=X)
    assert (report.fused, report.passed) == (1, True)


@pytest.mark.parametrize("name", ["attention.weight", "attention", "attention.weight.low"])
def test_a_name_that_is_taken_lies_inside_one_or_holds_one(name: str) -> None:
    model = Attention().eval()
    editor = Editor(capture(model, collect(model, X)).program)
    for value in (1.0, 2.0):
        editor.constant(name, torch.tensor(value))
    changed = name.replace(".", "_")
    assert set(editor.program.constants) == {f"{changed}_1", f"{changed}_2"}


def test_a_free_name_stays() -> None:
    model = Attention().eval()
    editor = Editor(capture(model, collect(model, X)).program)
    for name in (".attention.bias_of", "attention.weights"):
        editor.constant(name, torch.tensor(len(name)))
    assert set(editor.program.constants) == {"attention.bias_of", "attention.weights"}
