"""What the words of ``surgery export`` mean: axes, sizes, files with samples, labels or settings."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import typer
import yaml

from surgery.cli.options import yaml_value
from surgery.errors import SurgeryError, told_by


def axes(texts: Iterable[str] | None) -> dict[str, dict[int, str]] | None:
    """``["x=0:batch,2:height"]`` as ``{"x": {0: "batch", 2: "height"}}``; None for none.

    Raises:
        typer.BadParameter: If one is no NAME=DIM:AXIS,...
    """
    found = {}
    for text in texts or ():
        name, _, dims = text.partition("=")
        pairs = [dim.partition(":") for dim in dims.split(",")]
        if not name or not all(dim.isdecimal() and axis.isidentifier() for dim, _, axis in pairs):
            raise typer.BadParameter(f"{text!r} is no NAME=DIM:AXIS,... such as x=0:batch,2:height")
        found[name] = {int(dim): axis for dim, _, axis in pairs}
    return found or None


def profile(texts: Iterable[str] | None) -> dict[str, tuple[int, int, int]] | None:
    """``["batch=1,8,32"]`` as ``{"batch": (1, 8, 32)}``; None for none.

    Raises:
        typer.BadParameter: If one is no AXIS=SMALLEST,USUAL,LARGEST.
    """
    found = {}
    for text in texts or ():
        axis, _, sizes = text.partition("=")
        numbers = sizes.split(",")
        if not axis or len(numbers) != 3 or not all(number.isdecimal() for number in numbers):
            raise typer.BadParameter(f"{text!r} is no AXIS=MIN,OPT,MAX such as batch=1,8,32")
        low, best, high = map(int, numbers)
        found[axis] = (low, best, high)
    return found or None


def facts(texts: Iterable[str] | None) -> dict[str, Any] | None:
    """``["top-1=0.93"]`` as a mapping, values YAML; names may be any; None for none.

    Raises:
        typer.BadParameter: If one is no NAME=VALUE.
    """
    found = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        found[name] = yaml_value(value)
        if not (name and equals):
            raise typer.BadParameter(f"{text!r} is no NAME=VALUE")
    return found or None


def samples(path: Path | None) -> Any:
    """Inputs of a ``.npy`` (one array), ``.npz`` or ``.safetensors`` file (arrays by input name).

    Raises:
        SurgeryError: If it cannot be read.
    """
    if path is None:
        return None
    import numpy as np
    import safetensors.torch
    import torch

    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return torch.from_numpy(loaded)
        return {name: torch.from_numpy(loaded[name]) for name in loaded.files}
    except Exception as error:  # each library raises its own
        raise _unreadable("samples", path, error, ".npy, .npz or .safetensors") from error


def labels(path: Path | None) -> list[str] | None:
    """The lines of a text file."""
    return None if path is None else _text("labels", path).splitlines()


def settings(path: Path | None) -> dict[str, Any] | None:
    """A mapping in YAML or JSON.

    Raises:
        SurgeryError: If it cannot be read, or is no mapping.
    """
    if path is None:
        return None
    try:
        found = yaml.safe_load(_text("preprocessing", path))
        if not isinstance(found, dict):
            raise ValueError("it holds no mapping")
    except (yaml.YAMLError, ValueError) as error:
        raise _unreadable("preprocessing", path, error, "a mapping in YAML or JSON") from error
    return found


def processor(folder: Path | None) -> Any:
    """The image processor, tokenizer or processor that a folder holds the configuration of.

    Raises:
        SurgeryError: If it holds none.
    """
    if folder is None:
        return None
    import transformers

    try:
        return transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises whatever its parts do
        what = "a folder with a processor's or tokenizer's files"
        raise _unreadable("processor", folder, error, what) from error


def _text(what: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise _unreadable(what, path, error, "a text file in UTF-8") from error


def _unreadable(what: str, path: Path, error: Exception, wanted: str) -> SurgeryError:
    return SurgeryError(
        f"the {what} cannot be read",
        where=str(path),
        why=told_by(error),
        remedy=f"pass {wanted}",
    )
