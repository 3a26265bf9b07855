"""Operators that torch's exporter does not know compute in ONNX Runtime what they compute in torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import exporters
from exporters.errors import ExportError


class Search(nn.Module):
    def __init__(self, boundaries: Tensor, **options) -> None:
        super().__init__()
        self.register_buffer("boundaries", boundaries)
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        return torch.searchsorted(self.boundaries, x, **self.options)


class Searches(nn.Module):
    def __init__(self, boundaries: Tensor) -> None:
        super().__init__()
        options = ({}, {"right": True}, {"side": "right"}, {"side": "left"}, {"out_int32": True})
        self.searches = nn.ModuleList(Search(boundaries, **each) for each in options)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(search(x) for search in self.searches)


def check(model: nn.Module, path: Path, x: Tensor) -> None:
    """Every output is, to the last bit and type, what torch makes of ``x``."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for found, expected in zip(session.run(None, {"x": x.numpy()}), model(x), strict=True):
        assert found.dtype == expected.numpy().dtype
        np.testing.assert_array_equal(found, expected.numpy())


@pytest.mark.parametrize("rows", [False, True], ids=["one row", "a row each"])
def test_searchsorted(rows: bool, tmp_path: Path) -> None:
    boundaries = torch.tensor([0.0, 1.0, 1.0, 2.5])
    if rows:
        boundaries = torch.stack([boundaries, boundaries + 1, boundaries * 2])
    path, model = tmp_path / "model.onnx", Searches(boundaries).eval()
    x = torch.tensor([[-1.0, 0.0, 1.0], [2.0, 2.5, 9.0], [1.5, 0.5, 5.0]])
    exporters.to_onnx(model, path, example_inputs=x, dynamic=False, target="portable")
    check(model, path, x)


def test_a_sorter_is_refused_with_the_reason(tmp_path: Path) -> None:
    model = Search(torch.tensor([1.0, 0.0]), sorter=torch.tensor([1, 0])).eval()
    with pytest.raises(ExportError, match="sorter"):
        exporters.to_onnx(
            model, tmp_path / "model.onnx", example_inputs=torch.randn(2, 3), dynamic=False
        )


class SoFar(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        found = [(*torch.cummax(x, dim), *torch.cummin(-x, dim)) for dim in (0, 1, -1)]
        return tuple(each for pairs in found for each in pairs)


LOW = torch.iinfo(torch.int64).min + 1


@pytest.mark.parametrize(
    "x",
    [
        torch.tensor(
            [[[-torch.inf, 2.0, 2.0], [1.0, 3.0, 0.0]], [[2.0, 2.0, 1.0], [5.0, 0.0, 5.0]]]
        ),
        torch.tensor([[[LOW, 2, 2], [LOW, LOW, 0]], [[2, 2, 1], [5, 0, 5]]]),
    ],
    ids=["floats", "whole numbers"],
)
def test_largest_and_smallest_so_far(x: Tensor, tmp_path: Path) -> None:
    path, model = tmp_path / "model.onnx", SoFar().eval()
    axes = {"x": {1: "length"}}
    exporters.to_onnx(model, path, example_inputs=x, dynamic=axes, verify=False, target="portable")
    check(model, path, torch.cat([x, x.flip(2)], 1))
