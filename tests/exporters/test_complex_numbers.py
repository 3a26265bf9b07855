"""Complex numbers become pairs of real ones, which is all that ONNX has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import exporters
from exporters.complex_numbers import write_real
from tests.exporters.calls import Calls, outputs


def compare(model: nn.Module, path: Path, example: Tensor, given: Tensor) -> None:
    expected, found = outputs(model, path, example, given)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def turned(x: Tensor) -> Tensor:
    """Rotary embeddings as Llama 4 and DeepSeek-V2 write them."""
    angles = torch.outer(torch.arange(x.shape[-2]), torch.tensor([1.0, 0.1]))
    turns = torch.polar(torch.ones_like(angles), angles) * 1.25
    return torch.view_as_real(
        torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turns.unsqueeze(0)
    ).flatten(-2)


def mirrored(x: Tensor) -> Tensor:
    z = torch.complex(x, x + 1).conj().unsqueeze(0).transpose(1, 2)
    return (z.real * z.imag)[0] + torch.view_as_real(2 * z)[0, ..., 1]


@pytest.mark.parametrize("call", [turned, mirrored])
def test_complex_numbers(call: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    compare(Calls(call), tmp_path / "m.onnx", torch.randn(2, 3, 4), torch.randn(2, 3, 4))


class Tabled(nn.Module):
    """Keeps its turns in a table, as the first Llama did."""

    def __init__(self) -> None:
        super().__init__()
        angles = torch.outer(torch.arange(8), torch.tensor([1.0, 0.1]))
        self.register_buffer("turns", torch.polar(torch.ones_like(angles), angles))

    def forward(self, x: Tensor) -> Tensor:
        z = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
        return torch.view_as_real(z * self.turns[: x.shape[1]]).flatten(-2)


def test_a_table_of_complex_numbers(tmp_path: Path) -> None:
    compare(Tabled(), tmp_path / "m.onnx", torch.randn(2, 3, 4), torch.randn(5, 3, 4))


class Turning(nn.Module):
    """Attention whose query and key are turned."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind()
        seen = F.scaled_dot_product_attention(turned(q), turned(k), v, is_causal=True)
        return self.out(seen.transpose(1, 2).flatten(2))


def test_attention_behind_complex_rotations_is_fused(tmp_path: Path) -> None:
    axes = {"x": {0: "batch", 1: "sequence"}}
    report = exporters.to_onnx(
        Turning().eval(), tmp_path / "m.onnx", example_inputs=torch.randn(2, 5, 8), dynamic=axes
    )
    assert report.fused == 1 and report.passed


OTHERS = {
    "root": lambda x: torch.view_as_real(torch.view_as_complex(x).sqrt()),
    "imaginary unit": lambda x: torch.view_as_real(torch.view_as_complex(x) * 1j),
    "matrix product": lambda x: torch.view_as_real(
        torch.view_as_complex(x)[..., :1] @ torch.view_as_complex(x)
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_known_is_left_alone(name: str) -> None:
    model, x = Calls(OTHERS[name]), torch.randn(3, 1, 1, 2)
    program = torch.export.export(model, (x,))
    before = [str(node) for node in program.graph.nodes]
    write_real(program)
    assert [str(node) for node in program.graph.nodes] == before
    assert torch.equal(program.module()(x), model(x))


def test_a_complex_input_is_left_alone() -> None:
    model, x = Calls(lambda x: torch.view_as_real(x.to(torch.complex64)[0])), torch.randn(3, 2) * 1j
    program = torch.export.export(model, (x,))
    before = [str(node) for node in program.graph.nodes]
    write_real(program)
    assert [str(node) for node in program.graph.nodes] == before


def test_a_table_that_cannot_be_used_is_not_split() -> None:
    class Rooted(Tabled):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.view_as_real(self.turns.sqrt()).sum()

    program = torch.export.export(Rooted(), (torch.randn(2, 3, 4),))
    before = ([str(node) for node in program.graph.nodes], set(program.constants))
    write_real(program)
    assert ([str(node) for node in program.graph.nodes], set(program.constants)) == before
