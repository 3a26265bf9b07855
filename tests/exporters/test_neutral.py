"""A number beside 0 or 1 stays, in whatever way it is spelled; 0 and 1 themselves go."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import exporters
from tests.exporters.calls import Calls, outputs


def total(x: Tensor) -> Tensor:
    return x.abs().sum(-1, keepdim=True)


class Held(nn.Module):
    """An epsilon that is a buffer or a parameter of no dimension."""

    def __init__(self, learned: bool, first: bool) -> None:
        super().__init__()
        self.first = first
        if learned:
            self.eps = nn.Parameter(torch.tensor(1e-8))
        else:
            self.register_buffer("eps", torch.tensor(1e-8))

    def forward(self, x: Tensor) -> Tensor:
        return x / (self.eps + total(x) if self.first else total(x) + self.eps)


NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "rms": lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-9),
    "rms of torch": lambda x: F.rms_norm(x, (4,), eps=1e-9),
    "difference": lambda x: x / (total(x) - 1e-9),
    "no dimension": lambda x: x / (x.abs().max() + 1e-8),
    "lifted": lambda x: x / (total(x) + torch.tensor(1e-8)),
    "first": lambda x: x / torch.add(1e-8, total(x)),
    "scaled": lambda x: x / torch.add(total(x), torch.tensor(1e-4), alpha=1e-4),
    "whole": lambda x: x / ((x > 0).sum(-1, keepdim=True) + 1e-8),
    "whole, no dimension": lambda x: x / ((x > 0).sum() + 1e-8),
}


@pytest.mark.parametrize("norm", NORMS)
def test_a_tiny_epsilon_keeps_zeros_from_nan(norm: str, tmp_path: Path) -> None:
    example = torch.rand(3, 4) + 1
    zeros = torch.zeros(3, 4)
    expected, found = outputs(Calls(NORMS[norm]), tmp_path / "m.onnx", example, zeros)
    assert (expected == 0).all() and (found == 0).all()


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_so_does_one_that_the_model_holds(learned: bool, first: bool, tmp_path: Path) -> None:
    model = Held(learned, first)
    _, found = outputs(model, tmp_path / "m.onnx", torch.randn(3, 4), torch.zeros(3, 4))
    assert (found == 0).all()


@pytest.mark.parametrize(
    ("call", "given"),
    [
        (lambda x: x + 1e-9, 0.0),
        (lambda x: x - 1e-9, 0.0),
        (lambda x: x * 1.000005, 1.0),
        (lambda x: x / 1.000005, 1.0),
        (lambda x: torch.tensor(1.000005) * x, 1.0),
        (lambda x: x.max() * 1.000005, 1.0),
        (lambda x: (x > 0).sum(-1) * 1.000005 - 2, 1.0),
    ],
)
def test_a_number_is_not_taken_for_the_neutral_one(
    call: Callable[[Tensor], Tensor], given: float, tmp_path: Path
) -> None:
    x = torch.full((2, 3), given)
    expected, found = outputs(Calls(call), tmp_path / "m.onnx", torch.randn(2, 3), x)
    assert (expected == found).all() and (expected != given).all()


def test_the_neutral_one_itself_is_dropped(tmp_path: Path) -> None:
    model = Calls(lambda x: ((x + 0.0) * 1.0).relu()).eval()
    path = tmp_path / "m.onnx"
    exporters.to_onnx(model, path, example_inputs=torch.randn(2, 3), target="portable")
    assert [node.op_type for node in onnx.load(path).graph.node] == ["Relu"]
