"""What torch's exporter or onnxscript get wrong when it is spelled as people spell it."""

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
from exporters.eager import Array


class Calls(nn.Module):
    """A function as a model."""

    def __init__(self, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)


def outputs(model: nn.Module, path: Path, example: Tensor, given: Tensor) -> tuple[Array, Array]:
    """What model and portable file make of ``given``."""
    exporters.to_onnx(model.eval(), path, example_inputs=example, target="portable")
    (found,) = exporters.open_session(path).run(None, {"x": given.numpy()})
    with torch.no_grad():
        return model(given).numpy(), found


def test_a_tiny_epsilon_still_keeps_zeros_from_nan(tmp_path: Path) -> None:
    def norm(x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-9)

    x = torch.randn(3, 4)
    expected, found = outputs(
        Calls(norm), tmp_path / "m.onnx", x, x * torch.tensor([[0.0], [1], [2]])
    )
    assert np.abs(expected - found).max() < 1e-6


@pytest.mark.parametrize(
    ("call", "given"),
    [
        (lambda x: x + 1e-9, 0.0),
        (lambda x: x - 1e-9, 0.0),
        (lambda x: x * 1.000005, 1.0),
        (lambda x: x / 1.000005, 1.0),
    ],
)
def test_a_scalar_is_not_taken_for_the_neutral_one(
    call: Callable[[Tensor], Tensor], given: float, tmp_path: Path
) -> None:
    x = torch.full((2, 3), given)
    expected, found = outputs(Calls(call), tmp_path / "m.onnx", torch.randn(2, 3), x)
    assert (expected == found).all() and (expected != x.numpy()).all()


def test_whole_numbers_are_cast_before_they_are_subtracted(tmp_path: Path) -> None:
    x = torch.tensor([[1, 0, 1], [0, 0, 1]])
    expected, found = outputs(Calls(lambda x: (1.0 - x) * -1e4), tmp_path / "m.onnx", x, 1 - x)
    assert (expected == found).all()


@pytest.mark.parametrize("split", [lambda x: x.chunk(3, 1), lambda x: x.split(len(x[0]) // 3, 1)])
def test_equal_parts_of_an_open_length(split: Callable[..., list[Tensor]], tmp_path: Path) -> None:
    class Thirds(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            first, second, third = split(torch.cat([x, 2 * x, x + 1], 1))
            return first * second - third

    x = torch.randn(2, 4, 5)
    axes = {"x": {0: "batch", 1: "sequence"}}
    exporters.to_onnx(Thirds().eval(), tmp_path / "m.onnx", example_inputs=x, dynamic=axes)
    y = torch.randn(3, 7, 5)
    (found,) = exporters.open_session(tmp_path / "m.onnx").run(None, {"x": y.numpy()})
    np.testing.assert_allclose(found, y * 2 * y - (y + 1), atol=1e-6)


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
    x = torch.randn(2, 3, 4)
    expected, found = outputs(Calls(call), tmp_path / "m.onnx", x, torch.randn(2, 3, 4))
    np.testing.assert_allclose(found, expected, atol=1e-6)


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


@pytest.mark.parametrize("call", [lambda z: z.sqrt(), lambda z: z * 1j, lambda z: z[..., :1] @ z])
def test_other_operators_on_complex_numbers_are_left_alone(
    call: Callable[[Tensor], Tensor],
) -> None:
    model = Calls(lambda x: torch.view_as_real(call(torch.view_as_complex(x))))
    x = torch.randn(3, 1, 1, 2)
    program = torch.export.export(model, (x,))
    before = [str(node) for node in program.graph.nodes]
    write_real(program.graph)
    assert [str(node) for node in program.graph.nodes] == before
    assert torch.equal(program.module()(x), model(x))
