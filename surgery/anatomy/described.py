"""Example inputs that a transformers model describes: by its forward's arguments and its configuration.

Several shapes can go by one name (images, clips, flattened patches): proposals are made in order of
likelihood, and the first that the model accepts is taken.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from surgery.anatomy.capture import unchanged

BATCH, TOKENS, FRAMES, SAMPLES, PATCHES = 2, 16, 2, 16000, 4
Alternatives = list[Tensor]


@dataclass(frozen=True)
class Described:
    """A model that carries a transformers configuration."""

    model: nn.Module
    config: Any

    @cached_property
    def accepted(self) -> Mapping[str, inspect.Parameter]:
        """The arguments of the model's forward."""
        return inspect.signature(self.model.forward).parameters

    def proposals(self) -> Iterator[dict[str, Any]]:
        """Named inputs, the likeliest first; the last are without optional images."""
        wanted = self._wanted()
        if not wanted or any(name not in _MAKERS for name in wanted):
            return
        for chosen in product(*(_MAKERS[name](self) for name in wanted)):
            inputs = dict(zip(wanted, chosen, strict=True))
            yield self._with_image_tokens(inputs)
        if "input_ids" in wanted and any(name not in _TEXT for name in wanted):
            yield {name: _MAKERS[name](self)[0] for name in wanted if name in _TEXT}

    def _wanted(self) -> list[str]:
        main = getattr(self.model, "main_input_name", "input_ids")
        names = [n for n, p in self.accepted.items() if _required(p)]
        usual = ("input_ids", "pixel_values", "input_features", "input_values", "bbox")
        names += [n for n in usual if n in self.accepted and n not in names]
        if isinstance(main, str) and main in self.accepted and main not in names:
            names.insert(0, main)
        if "pixel_values" in names:
            names += [n for n in _GRIDS if n in self.accepted and n not in names]
        if "input_ids" in names and "attention_mask" in self.accepted:
            names.append("attention_mask")
        if "decoder_input_ids" in self.accepted:
            names.append("decoder_input_ids")
        return list(dict.fromkeys(names))

    def _with_image_tokens(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """As many image tokens in the text as the model makes features of the images."""
        token = self.number("image_token_id", "image_token_index", default=-1)
        if "pixel_values" not in inputs or "input_ids" not in inputs or token < 0:
            return inputs
        count = self._image_features(inputs)
        if not count:
            return inputs
        tokens = inputs["input_ids"]
        images = torch.full((BATCH, count), token, dtype=tokens.dtype, device=tokens.device)
        text = torch.where(tokens == token, torch.ones_like(tokens), tokens)
        together = {**inputs, "input_ids": torch.cat([text[:, :1], images, text[:, 1:]], 1)}
        if "attention_mask" in inputs:
            together["attention_mask"] = torch.ones_like(together["input_ids"])
        if "mm_token_type_ids" in self.accepted:
            together["mm_token_type_ids"] = (together["input_ids"] == token).to(tokens.dtype)
        return together

    def _image_features(self, inputs: Mapping[str, Any]) -> int:
        """Feature vectors that the model makes of one image; 0 if it does not say."""
        extract = getattr(self.model, "get_image_features", None)
        if extract is None:
            return 0
        known = inspect.signature(extract).parameters
        images = {n: v for n, v in inputs.items() if n in known}
        try:
            with unchanged(self.model), torch.no_grad():
                found = extract(**images)
        except Exception:
            return 0
        found = getattr(found, "pooler_output", found)
        parts = list(found) if isinstance(found, list | tuple) else [found]
        vectors = sum(
            p.numel() // p.shape[-1] for p in parts if isinstance(p, Tensor) and p.numel()
        )
        return vectors // BATCH

    def number(self, *names: str, default: int, inside: tuple[str, ...] = ()) -> int:
        """The first whole number under any of ``names``, in the sub-configurations ``inside`` first."""
        configs = [getattr(self.config, name, None) for name in inside]
        for config in (*configs, self.config):
            for name in names:
                value = getattr(config, name, None)
                if isinstance(value, list | tuple) and value:
                    value = value[0]
                if isinstance(value, int) and not isinstance(value, bool):
                    return value
        return default

    def floats(self, *shape: int) -> Tensor:
        """Benign values in the model's dtype, on its device."""
        generator = torch.Generator().manual_seed(0)
        return torch.rand(shape, generator=generator, device="cpu").to(self.device, self.dtype)

    def whole(self, values: Any) -> Tensor:
        """Whole numbers on the model's device."""
        return torch.as_tensor(values, dtype=torch.long, device=self.device)

    @cached_property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    @cached_property
    def dtype(self) -> torch.dtype:
        """The dtype of its first floating-point weight."""
        floating = (p.dtype for p in self.model.parameters() if p.is_floating_point())
        return next(floating, torch.float32)


def _required(parameter: inspect.Parameter) -> bool:
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return parameter.default is parameter.empty and parameter.kind not in variadic


_VISION = ("vision_config",)
_SOUND = ("audio_config", "encoder_config", "speech_config")


def _tokens(of: Described) -> Alternatives:
    size = of.number("vocab_size", default=32, inside=("text_config", "decoder"))
    tokens = torch.arange(BATCH * TOKENS).reshape(BATCH, TOKENS) % max(size - 4, 1) + 3
    # Several text towers pool at the end-of-sequence token and must find one.
    end = of.number("eos_token_id", default=size - 1, inside=("text_config",))
    tokens[:, -1] = min(end, size - 1)
    return [of.whole(tokens.clamp(max=size - 1))]


def _mask(of: Described) -> Alternatives:
    return [torch.ones_like(_tokens(of)[0])]


def _images(of: Described) -> Alternatives:
    channels = of.number("num_channels", "in_channels", "in_chans", default=3, inside=_VISION)
    sides = [of.number("image_size", "img_size", "input_size", default=224, inside=_VISION)]
    one = [of.floats(BATCH, channels, *_sides(of, side)) for side in sides]
    frames = of.number("num_frames", "frames_per_clip", default=0, inside=_VISION)
    clips = [image.unsqueeze(1).repeat(1, max(frames, 1), 1, 1, 1) for image in one]
    if any(name in of.accepted for name in _GRIDS):
        return [_patches(of), *one]
    return [*clips, *one] if frames else [*one, *clips, *(c.repeat(1, 2, 1, 1, 1) for c in clips)]


def _sides(of: Described, side: int) -> tuple[int, int]:
    vision = getattr(of.config, "vision_config", of.config)
    size = getattr(vision, "image_size", side)
    height, width = size if isinstance(size, list | tuple) and len(size) == 2 else (side, side)
    return int(height), int(width)


def _clips(of: Described) -> Alternatives:
    return [image.unsqueeze(1).repeat(1, frames, 1, 1, 1)
            for image in _images(of) if image.ndim == 4
            for frames in (of.number("num_frames", "frames_per_clip", default=FRAMES, inside=_VISION),)]  # fmt: skip


def _patches(of: Described) -> Tensor:
    """Flattened patches of images of 4 x 4 patches."""
    side = of.number("patch_size", default=14, inside=_VISION)
    deep = of.number("temporal_patch_size", default=1, inside=_VISION)
    channels = of.number("in_channels", "num_channels", "in_chans", default=3, inside=_VISION)
    return of.floats(BATCH * PATCHES * PATCHES, channels * deep * side * side)


def _grid(of: Described) -> Alternatives:
    return [of.whole([[1, PATCHES, PATCHES]] * BATCH)]


def _spectrum(of: Described) -> Alternatives:
    """Features by frames or frames by features; as long as the positions it knows, or one second."""
    names = ("num_mel_bins", "feature_size", "input_feat_per_channel", "input_dim", "n_mels",
             "feature_projection_input_dim", "num_mel_filters", "input_feat_size")  # fmt: skip
    bins = of.number(*names, default=80, inside=_SOUND)
    long = 2 * of.number("max_source_positions", default=50, inside=_SOUND)
    shapes = ((bins, long), (long, bins), (bins, 100), (100, bins), (1, long, bins))
    return [of.floats(BATCH, *shape) for shape in shapes]


def _wave(of: Described) -> Alternatives:
    bins = of.number("num_mel_bins", default=80)
    length = of.number("max_length", default=128)
    return [of.floats(BATCH, SAMPLES), of.floats(BATCH, 1, SAMPLES), of.floats(BATCH, length, bins)]


def _boxes(of: Described) -> Alternatives:
    corners = of.whole([1, 1, 3, 3]).expand(BATCH, TOKENS, 4)
    return [corners.contiguous(), of.floats(BATCH, TOKENS, 8)]


def _series(of: Described) -> Alternatives:
    length = of.number("context_length", default=64)
    channels = of.number("num_input_channels", default=1)
    return [of.floats(BATCH, length, channels), of.floats(BATCH, length)]


def _states(of: Described) -> Alternatives:
    width = of.number("hidden_size", default=64)
    return [_patches(of), of.floats(BATCH, width, SAMPLES // 160), of.floats(BATCH, TOKENS, width)]


_GRIDS = ("image_grid_thw", "grid_thw")
_TEXT = ("input_ids", "attention_mask", "decoder_input_ids", "bbox", "qformer_input_ids")
_MAKERS: dict[str, Callable[[Described], Alternatives]] = {
    "input_ids": _tokens,
    "decoder_input_ids": _tokens,
    "qformer_input_ids": _tokens,
    "attention_mask": _mask,
    "pixel_values": _images,
    "pixel_values_videos": _clips,
    "image_grid_thw": _grid,
    "grid_thw": _grid,
    "input_features": _spectrum,
    "input_values": _wave,
    "bbox": _boxes,
    "past_values": _series,
    "hidden_states": _states,
    "query_embeds": lambda of: [of.floats(BATCH, TOKENS, of.number("hidden_size", default=64))],
    "latents": lambda of: [of.floats(BATCH, of.number("hidden_size", default=64), TOKENS)],
}
