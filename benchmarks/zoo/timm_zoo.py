"""timm: every model name, two of each run of equal blocks, at its full width."""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.models import model_entrypoint
from torch import Tensor, nn

from benchmarks.zoo.examine import Specimen
from benchmarks.zoo.shorten import shorten

_FREE_SIZE = 128


class Timm:
    """The names of ``timm.list_models()``."""

    def names(self) -> list[str]:
        """One of each family first, then the rest."""
        everything = timm.list_models()
        firsts = {self.family(name): name for name in reversed(everything)}
        first = sorted(firsts.values())
        return first + [name for name in everything if name not in set(first)]

    def family(self, name: str) -> str:
        """The module of timm that defines it."""
        return str(model_entrypoint(name).__module__).rpartition(".")[2]

    def build(self, name: str) -> Specimen:
        """A short instance; images as small as it takes, unless its size is fixed."""
        model, small = _shallow(name)
        if removed := shorten(model):
            specimen = Specimen(model, _images(model), f"{removed} repeated blocks left out")
            if specimen.inputs is not None or _runs(model, _published_size(model)):
                return specimen
            model, small = timm.create_model(name), ""
        return Specimen(model, _images(model), small)


def _shallow(name: str) -> tuple[nn.Module, str]:
    """At depth 2 if the model takes that as an argument (a giant's weights are never made)."""
    try:
        return timm.create_model(name, depth=2), "depth 2"
    except Exception:
        return timm.create_model(name), ""


def _images(model: nn.Module) -> Tensor | None:
    """Smaller images for models of free input size; None leaves the choice to the reader."""
    config: Any = model.pretrained_cfg
    channels, height, width = config["input_size"]
    if config.get("fixed_input_size") or min(height, width) <= _FREE_SIZE:
        return None
    images = torch.rand(2, channels, _FREE_SIZE, _FREE_SIZE)
    return images if _runs(model, images) else None


def _published_size(model: nn.Module) -> Tensor:
    config: Any = model.pretrained_cfg
    return torch.rand(1, *config["input_size"])


def _runs(model: nn.Module, images: Tensor) -> bool:
    try:
        with torch.no_grad():
            model.eval()(images)
    except Exception:
        return False
    return True
