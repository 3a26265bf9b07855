"""From pictures and texts to the inputs of an exported file, as the file's own metadata says.

Needs numpy, Pillow for pictures and tokenizers for texts; neither PyTorch nor model-surgery.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

PREFIX = "model_surgery."
Feeds = dict[str, np.ndarray[Any, Any]]

_FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
}


def facts(custom_metadata: Mapping[str, str]) -> dict[str, Any]:
    """What a file says about itself: ``facts(session.get_modelmeta().custom_metadata_map)``."""
    return {
        key.removeprefix(PREFIX): json.loads(value)
        for key, value in custom_metadata.items()
        if key.startswith(PREFIX)
    }


def image_transform(settings: Mapping[str, Any]) -> Callable[[Image.Image], np.ndarray[Any, Any]]:
    """A function from a picture to (channels, height, width), float32.

    Args:
        settings: timm's data config, or the configuration of one of transformers' image processors.

    Raises:
        ValueError: If they ask for something that is not done here.
    """
    if "input_size" in settings:
        return _timm(settings)
    if "image_processor_type" in settings or "image_mean" in settings:
        return _transformers(settings)
    raise ValueError(f"no preprocessing of pictures is described by {sorted(settings)}")


def text_encoder(
    told: Mapping[str, Any], inputs: Sequence[str]
) -> Callable[[Sequence[str]], Feeds]:
    """A function from texts to ``input_ids`` and ``attention_mask``, padded to the longest.

    Args:
        told: :func:`facts` of a file that was exported with ``processor=tokenizer``.
        inputs: Names of the file's inputs.
    """
    tokenizer = Tokenizer.from_str(
        zlib.decompress(base64.urlsafe_b64decode(told["tokenizer"])).decode()
    )
    settings = told["preprocessing"]
    settings = settings.get("tokenizer", settings)
    tokenizer.enable_padding(pad_id=settings["pad_token_id"] or 0)
    if settings["model_max_length"]:
        tokenizer.enable_truncation(settings["model_max_length"])

    def encode(texts: Sequence[str]) -> Feeds:
        found = tokenizer.encode_batch(list(texts))
        columns = {
            "input_ids": [entry.ids for entry in found],
            "attention_mask": [entry.attention_mask for entry in found],
            "token_type_ids": [entry.type_ids for entry in found],
        }
        return {n: np.array(rows, np.int64) for n, rows in columns.items() if n in inputs}

    return encode


def _timm(settings: Mapping[str, Any]) -> Callable[[Image.Image], np.ndarray[Any, Any]]:
    mode = settings.get("crop_mode", "center")
    if mode not in ("center", "squash"):
        raise ValueError(f"crop_mode {mode!r} is not done here")
    _, height, width = settings["input_size"]
    filter_ = _FILTERS[settings["interpolation"]]
    scale = settings.get("crop_pct", 1.0)
    high, wide = math.floor(height / scale), math.floor(width / scale)

    def transform(image: Image.Image) -> np.ndarray[Any, Any]:
        image = image.convert("RGB")
        if mode == "squash":
            image = image.resize((wide, high), filter_)
        elif high == wide:
            image = _shortest(image, high, filter_)
        else:
            ratio = min(image.width / wide, image.height / high)
            image = image.resize((round(image.width / ratio), round(image.height / ratio)), filter_)
        return _normalised(_centre(image, height, width), settings["mean"], settings["std"])

    return transform


def _transformers(settings: Mapping[str, Any]) -> Callable[[Image.Image], np.ndarray[Any, Any]]:
    odd = [k for k in ("do_pad", "do_flip_channel_order") if settings.get(k)]
    if odd or not settings.get("do_rescale", True):
        raise ValueError(f"{', '.join(odd) or 'do_rescale=False'} is not done here")
    filter_ = Image.Resampling(settings.get("resample", Image.Resampling.BILINEAR))
    normalise = settings.get("do_normalize", True)
    mean = settings["image_mean"] if normalise else [0.0] * 3
    std = settings["image_std"] if normalise else [1.0] * 3

    def transform(image: Image.Image) -> np.ndarray[Any, Any]:
        image = image.convert("RGB")
        if settings.get("do_resize", True):
            image = _resized(image, settings["size"], filter_)
        if settings.get("do_center_crop"):
            image = _centre(image, settings["crop_size"]["height"], settings["crop_size"]["width"])
        return _normalised(image, mean, std)

    return transform


def _resized(image: Image.Image, size: Mapping[str, int], filter_: Image.Resampling) -> Image.Image:
    if size.get("height") and size.get("width"):
        return image.resize((size["width"], size["height"]), filter_)
    if size.get("shortest_edge") and not size.get("longest_edge"):
        return _shortest(image, size["shortest_edge"], filter_)
    raise ValueError(f"size {dict(size)} is not done here")


def _shortest(image: Image.Image, length: int, filter_: Image.Resampling) -> Image.Image:
    """The shorter side gets this length, the longer one keeps the proportion, rounded down."""
    short = min(image.size)
    width, height = (side * length // short for side in image.size)
    return image.resize((width, height), filter_)


def _centre(image: Image.Image, height: int, width: int) -> Image.Image:
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def _normalised(
    image: Image.Image, mean: Sequence[float], std: Sequence[float]
) -> np.ndarray[Any, Any]:
    pixels = np.asarray(image, np.float32) / 255
    scaled = (pixels - np.array(mean, np.float32)) / np.array(std, np.float32)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))
