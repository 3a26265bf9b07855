"""Functions that ONNX lacks: of constants they are constants, of anything else they are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import exporters
from tests.exporters.calls import outputs


class Sparse(nn.Module):
    """Keeps a tenth of its activations, as Gemma 3n does."""

    def forward(self, x: Tensor) -> Tensor:
        quantile = torch.distributions.Normal(0, 1).icdf(torch.tensor(0.9))
        return (x - x.mean(-1, keepdim=True) - quantile * x.std(-1, keepdim=True)).relu()


class Inverse(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.erfinv()


def test_a_quantile_is_a_constant(tmp_path: Path) -> None:
    example, given = torch.randn(2, 64), torch.randn(3, 64)
    expected, found = outputs(Sparse(), tmp_path / "model.onnx", example, given)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_of_inputs_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(exporters.ExportError, match="could not be translated to ONNX"):
        exporters.to_onnx(Inverse().eval(), tmp_path / "m.onnx", example_inputs=torch.rand(2, 3))
    assert not any(tmp_path.iterdir())
