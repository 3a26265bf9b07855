"""Example inputs that a model's own configuration describes: timm's pretrained_cfg, transformers' config."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from surgery.errors import CaptureError

BATCH = 2
TOKENS = 16
_VISION = "pixel_values"


@dataclass(frozen=True)
class ExampleInputs:
    """Positional and named example inputs of one call."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def describe(self) -> dict[str, str]:
        """Shape and dtype of each tensor, by name or position."""
        named = {**{str(i): value for i, value in enumerate(self.args)}, **self.kwargs}
        return {
            name: f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
            for name, value in named.items()
            if isinstance(value, Tensor)
        }


def example_inputs(model: nn.Module, given: Any = None) -> ExampleInputs:
    """Return the inputs given by the user, or make them from the model's own configuration.

    Args:
        model: A timm or transformers model, or any module if ``given`` is passed.
        given: A tensor, a tuple of positional inputs, a mapping of named inputs, or None.

    Raises:
        CaptureError: If nothing is given and the model does not tell what it takes.
    """
    if isinstance(given, ExampleInputs):
        return given
    if isinstance(given, Mapping):
        return ExampleInputs(kwargs={**given, **_extras(model, given)})
    if given is not None:
        return ExampleInputs(args=tuple(given) if isinstance(given, tuple | list) else (given,))
    made = _from_timm(model) or _from_transformers(model)
    if made is None:
        raise CaptureError(
            f"{type(model).__name__} does not tell what inputs it takes",
            why="it has neither timm's pretrained_cfg nor a transformers config",
            remedy="pass example_inputs=, a tensor, a tuple or a dict, with batch size 2 or more",
        )
    return made


def _from_timm(model: nn.Module) -> ExampleInputs | None:
    config = getattr(model, "pretrained_cfg", None)
    if not isinstance(config, Mapping) or not config.get("input_size"):
        return None
    channels, height, width = config["input_size"]
    patch_embed = getattr(model, "patch_embed", None)
    size = getattr(patch_embed, "img_size", None)
    if size is not None:
        height, width = size
    channels = getattr(patch_embed, "in_chans", None) or _first_conv_channels(model) or channels
    return ExampleInputs(args=(_floats(model, (BATCH, channels, height, width)),))


def _from_transformers(model: nn.Module) -> ExampleInputs | None:
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "to_dict"):
        return None
    accepted = inspect.signature(model.forward).parameters
    main = getattr(model, "main_input_name", "input_ids")
    inputs: dict[str, Any] = {}
    if main == "input_ids" or "input_ids" in accepted:
        inputs |= _text(model, config, accepted)
    if main == _VISION or _VISION in accepted:
        inputs[_VISION] = _image(model, config)
    if main not in inputs:
        return None
    return ExampleInputs(kwargs={**inputs, **_extras(model, inputs)})


def _text(model: nn.Module, config: Any, accepted: Mapping[str, Any]) -> dict[str, Tensor]:
    text = getattr(config, "text_config", config)
    vocabulary = int(getattr(text, "vocab_size", 0) or 32)
    tokens = torch.arange(BATCH * TOKENS).reshape(BATCH, TOKENS) % max(vocabulary - 4, 1) + 3
    # Several text towers pool at the end-of-sequence token and must find one.
    tokens[:, -1] = min(_token(text, "eos_token_id", vocabulary - 1), vocabulary - 1)
    tokens = tokens.clamp(max=vocabulary - 1).to(_device(model))
    inputs = {"input_ids": tokens}
    if "attention_mask" in accepted:
        inputs["attention_mask"] = torch.ones_like(tokens)
    if "decoder_input_ids" in accepted:
        inputs["decoder_input_ids"] = tokens.clone()
    return inputs


def _token(config: Any, name: str, default: int) -> int:
    value = getattr(config, name, None)
    return value if isinstance(value, int) else default


def _image(model: nn.Module, config: Any) -> Tensor:
    vision = getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", 224)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    channels = getattr(vision, "num_channels", 3)
    return _floats(model, (BATCH, channels, height, width))


def _extras(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """No key-value cache: its tensors are outputs that no training needs."""
    if not hasattr(getattr(model, "config", None), "use_cache") or "use_cache" in inputs:
        return {}
    accepted = inspect.signature(model.forward).parameters
    named = "use_cache" in accepted
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in accepted.values())
    return {"use_cache": False} if named or open_ended else {}


def _floats(model: nn.Module, shape: tuple[int, ...]) -> Tensor:
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    dtype = torch.float32 if parameter is None else parameter.dtype
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(shape, generator=generator, dtype=torch.float32)
    return values.to(device=_device(model), dtype=dtype)


def _device(model: nn.Module) -> torch.device:
    parameter = next(iter(model.parameters()), None)
    return torch.device("cpu") if parameter is None else parameter.device


def _first_conv_channels(model: nn.Module) -> int | None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    return None
