"""How a model wants its images: size, channels, mean and deviation, and the name of the input."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from surgery.anatomy.inputs import example_inputs
from surgery.errors import CaptureError, RunError
from surgery.runs.schema import RunSpec

_HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Look:
    """What images are made into.

    Attributes:
        name: Of the model's input.
        shape: (channels, height, width).
        mean, std: Of each channel, in 0 to 1.
        interpolation: Of the resizing.
        crop: Share of an image that is looked at in evaluation.
    """

    name: str
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop: float

    def transform(self, *, training: bool) -> Callable[[Any], Tensor]:
        """timm's transform, PIL image to (c, h, w) float32; random crops and flips if training."""
        from timm.data import create_transform

        made = create_transform(
            self.shape,
            is_training=training,
            mean=self.mean,
            std=self.std,
            interpolation=self.interpolation,
            crop_pct=self.crop,
            color_jitter=None,
        )
        mode = "L" if self.shape[0] == 1 else "RGB"
        return lambda image: made(image.convert(mode))


def look_of(model: nn.Module, spec: RunSpec) -> Look:
    """Ask timm's pretrained_cfg, transformers' image processor, or the training file (``data.size``).

    Raises:
        RunError: If the size is not known.
    """
    name, shape = _input(model, spec)
    config = _config(model, spec)
    mean, std = (tuple(config.get(k, _HALF))[: shape[0]] for k in ("mean", "std"))
    how = config.get("interpolation", "bicubic")
    return Look(name, shape, mean, std, how, config.get("crop_pct") or 1.0)


def _input(model: nn.Module, spec: RunSpec) -> tuple[str, tuple[int, int, int]]:
    size = spec.data.size
    try:
        made = example_inputs(model)
    except CaptureError as error:
        if size is None:
            raise RunError(
                f"{type(model).__name__} does not tell the size of its images",
                where=spec.model.name,
                remedy="set data.size, in pixels a side",
            ) from error
        return _first_parameter(model), (3, size, size)
    if made.args:
        name, tensor = _first_parameter(model), made.args[0]
    else:
        name, tensor = "pixel_values", made.kwargs.get("pixel_values")
    if not isinstance(tensor, Tensor) or tensor.ndim != 4:
        raise RunError(
            f"{type(model).__name__} takes no images",
            where=spec.model.name,
            why=f"its inputs are {', '.join(made.describe().values())}",
            remedy="train it on data.table or a data.dataset of texts",
        )
    channels, height, width = tensor.shape[1:]
    return name, (channels, size or height, size or width)


def _first_parameter(model: nn.Module) -> str:
    return next(iter(inspect.signature(model.forward).parameters))


def _config(model: nn.Module, spec: RunSpec) -> dict[str, Any]:
    """Mean, deviation, interpolation and crop, as far as somebody tells them."""
    config = getattr(model, "pretrained_cfg", None)
    if config:
        return dict(config)
    folder = Path(spec.model.name.partition(":")[2]).expanduser()
    if not (folder / "preprocessor_config.json").is_file():
        return {}
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(str(folder))
    return {"mean": processor.image_mean, "std": processor.image_std}
