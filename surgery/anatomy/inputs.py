"""Example inputs that a model's own configuration describes: timm's pretrained_cfg, transformers' config."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from surgery.anatomy.capture import unchanged
from surgery.anatomy.described import BATCH, Described
from surgery.errors import CaptureError

_TRIALS = 24


@dataclass(frozen=True)
class ExampleInputs:
    """Positional and named example inputs of one call."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def leaves(self) -> list[Tensor]:
        """Every tensor among the inputs."""
        found = pytree.tree_leaves((self.args, self.kwargs))
        return [leaf for leaf in found if isinstance(leaf, Tensor)]

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

    They are plain tensors, also where they were made under ``torch.inference_mode``.

    Raises:
        CaptureError: If nothing is given and the model does not tell what it takes.
    """
    with torch.inference_mode(False):
        made = _collected(model, given)
        if any(leaf.is_inference() for leaf in made.leaves()):
            made = ExampleInputs(*pytree.tree_map_only(Tensor, _plain, (made.args, made.kwargs)))
    return made


def _plain(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.is_inference() else tensor


def _collected(model: nn.Module, given: Any) -> ExampleInputs:
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
            why="it has neither timm's pretrained_cfg nor a transformers config that says enough",
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
    told = [getattr(patch_embed, "in_chans", None), _first_conv_channels(model), channels]
    described = Described(model, None)
    made = [
        ExampleInputs(args=(described.floats(BATCH, number, height, width),))
        for number in dict.fromkeys(filter(None, told))
    ]
    # The first convolution is not always the first to see the image (space to depth, DCT).
    accepted = (inputs for inputs in made if len(made) == 1 or _accepts(model, inputs))
    return next(accepted, made[0])


def _first_conv_channels(model: nn.Module) -> int | None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    return None


def _from_transformers(model: nn.Module) -> ExampleInputs | None:
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "to_dict"):
        return None
    proposals = Described(model, config).proposals()
    made = [{**p, **_extras(model, p)} for p in islice(proposals, _TRIALS)]
    if len(made) <= 1:
        return ExampleInputs(kwargs=made[0]) if made else None
    proposed = [ExampleInputs(kwargs=inputs) for inputs in made]
    return next((inputs for inputs in proposed if _accepts(model, inputs)), proposed[0])


def _accepts(model: nn.Module, inputs: ExampleInputs) -> bool:
    """Whether the model runs on the inputs."""
    try:
        with unchanged(model), torch.no_grad():
            model(*inputs.args, **inputs.kwargs)
    except Exception:
        return False
    return True


def _extras(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """No key-value cache: its tensors are outputs that no training needs."""
    if "use_cache" in inputs or not _caches(getattr(model, "config", None)):
        return {}
    accepted = inspect.signature(model.forward).parameters
    if "use_cache" in accepted:
        return {"use_cache": False}
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in accepted.values())
    return {"use_cache": False} if open_ended and not _sets_itself(model, inputs) else {}


def _sets_itself(model: nn.Module, inputs: Mapping[str, Any]) -> bool:
    """Whether the forward hands ``use_cache`` to a part beside what it was given (T5Gemma2's classifier)."""
    try:
        with unchanged(model), torch.no_grad():
            model(**inputs, use_cache=False)
    except TypeError as error:
        return "multiple values for keyword argument 'use_cache'" in str(error)
    except Exception:
        return False
    return False


def _caches(config: Any) -> bool:
    """Whether a configuration, or that of a part, speaks of a cache."""
    parts = (getattr(config, name, None) for name in getattr(config, "sub_configs", {}))
    return hasattr(config, "use_cache") or any(hasattr(part, "use_cache") for part in parts)
