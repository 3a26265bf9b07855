"""timm: every model name, two of each run of equal blocks, at its full width."""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg_value, model_entrypoint
from torch import Tensor, nn

from benchmarks.zoo.examine import Specimen
from benchmarks.zoo.shorten import shorten
from surgery.anatomy.inputs import example_inputs

_FREE_SIZE = 192


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
        """The smallest instance that runs: half the image size, depth 2, repeated blocks left out."""
        half = [side // 2 for side in get_pretrained_cfg_value(name, "input_size")[1:]]
        sized = {"img_size": tuple(half)}
        options: dict[str, Any]
        for options in ({"depth": 2, **sized}, sized, {"depth": 2}, {}):
            specimen = _shortened(name, options)
            if specimen is not None:
                return specimen
        return Specimen(timm.create_model(name))


def _shortened(name: str, options: dict[str, Any]) -> Specimen | None:
    """None if the model does not take the options or does not run with blocks left out."""
    try:
        model = timm.create_model(name, **options)
    except Exception:
        return None
    removed = shorten(model)
    images = _small_images(model)
    if images is None and not _runs(model, *example_inputs(model).args):
        return None
    made = [f"{key} {value}" for key, value in options.items()]
    made += [f"{removed} repeated blocks left out"] if removed else []
    return Specimen(model, images, ", ".join(made))


def _small_images(model: nn.Module) -> Tensor | None:
    """Smaller images for models of free input size; None leaves the choice to the reader."""
    config: Any = model.pretrained_cfg
    channels, height, width = config["input_size"]
    if config.get("fixed_input_size") or min(height, width) <= _FREE_SIZE:
        return None
    images = torch.rand(2, channels, _FREE_SIZE, _FREE_SIZE)
    return images if _runs(model, images) else None


def _runs(model: nn.Module, images: Tensor) -> bool:
    try:
        with torch.no_grad():
            model.eval()(images)
    except Exception:
        return False
    return True
