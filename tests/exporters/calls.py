"""Functions as models, and what their files make of an input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import exporters
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
