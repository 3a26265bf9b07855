"""What torch's exporter or onnxscript get wrong when it is spelled as people spell it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import exporters
from tests.exporters.calls import Calls, outputs


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


@pytest.mark.parametrize("limits", [{}, {"min": 2.0, "max": 2.0}])
def test_one_bin_over_all_there_is(limits: dict[str, float], tmp_path: Path) -> None:
    model = Calls(lambda x: torch.histc(x, bins=1, **limits) + x)
    expected, found = outputs(model, tmp_path / "m.onnx", torch.randn(2, 3), torch.randn(2, 3))
    assert (expected == found).all()
