"""Everything that can be refused before the expensive work starts."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection
from pathlib import Path

import torch
from torch import nn

from exporters.errors import ExportError

ONNX = ".onnx"


def onnx_path(path: str | os.PathLike[str]) -> Path:
    """The absolute path of a file to write. Its suffix sets it apart from what lies beside it: card, adapter, report.

    Raises:
        ExportError: If it is no path, or names another kind of file.
    """
    if isinstance(path, str | os.PathLike) and Path(path).suffix == ONNX:
        return Path(path).absolute()
    raise ExportError(
        "this is no path of an ONNX file",
        where=str(path),
        why=f"its name must end in {ONNX}: a model card, model.md, and other files are written beside it",
        remedy=f"pass 'model{ONNX}', or any other name that ends so",
    )


def check_destinations(files: list[Path], overwrite: bool) -> None:
    """Refuse paths that exist or cannot be written.

    Raises:
        ExportError: With the path and the reason.
    """
    for path in files:
        try:
            path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue  # the folder is looked at below
        except (OSError, ValueError) as error:  # a name that is too long, a null byte in it
            raise _unwritable(path, str(getattr(error, "strerror", None) or error)) from error
        if path.is_dir():
            raise _unwritable(path, "it is a directory")
        if not overwrite:
            check_absent([path])
    for folder in {path.parent for path in files}:
        _check_folder(folder, files[0])


def check_absent(files: Collection[Path]) -> None:
    """Refuse to replace what is there.

    Raises:
        ExportError: With the first that is.
    """
    for path in files:
        if os.path.lexists(path):
            raise ExportError(
                "the file exists already",
                where=str(path),
                why="an exported file is never replaced unasked",
                remedy="pass overwrite=True or another path",
            )


def make_folder(path: Path) -> None:
    """Make a folder, in one that is there, if it is not there yet.

    Raises:
        ExportError: With the path and the reason.
    """
    try:
        path.mkdir(exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise _unwritable(path, str(error)) from error


def check_model(model: nn.Module) -> None:
    """Refuse what is no module, TorchScript, a model in train mode, and weights that are not there or not finite.

    Raises:
        ExportError: Naming the first module or weight at fault.
    """
    if not isinstance(model, nn.Module):
        raise ExportError(
            f"{type(model).__name__} is no model",
            why="to_onnx takes a torch.nn.Module",
            remedy="pass the model itself, in eval mode",
        )
    scripted = (n for n, m in model.named_modules() if isinstance(m, torch.jit.ScriptModule))
    if (name := next(scripted, None)) is not None:
        raise ExportError(
            f"{type(model).__name__} is TorchScript"
            if not name
            else "a part of the model is TorchScript",
            where=name or None,
            why="torch.export follows Python code, and a scripted or traced model has none left",
            remedy="pass what torch.jit.script or torch.jit.trace was given",
        )
    training = next((name for name, module in model.named_modules() if module.training), None)
    if training is not None:
        raise ExportError(
            f"{type(model).__name__} is in train mode",
            where=training or "the model itself",
            why="dropout and batch statistics would be exported as they are now",
            remedy="call model.eval() first",
        )
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if value.is_meta:
            raise ExportError(
                "the model has no weights",
                where=name,
                why="it is on the meta device, which keeps shapes alone",
                remedy="load its weights first, or build it on the CPU",
            )
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not torch.isfinite(parameter).all():
            raise _not_finite(name, parameter)
    for name, buffer in model.named_buffers():
        # Infinite buffers are legal: attention masks are made of them.
        if buffer.is_floating_point() and torch.isnan(buffer).any():
            raise _not_finite(name, buffer)


def _check_folder(folder: Path, path: Path) -> None:
    try:
        # os.access answers for root and read-only mounts wrongly; writing is the only proof.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unwritable(path, f"{folder}: {error.strerror or error}") from error


def _unwritable(path: Path, why: str) -> ExportError:
    return ExportError(
        "the files cannot be written",
        where=str(path),
        why=why,
        remedy="create the folder, or choose a path that you may write to",
    )


def _not_finite(name: str, value: torch.Tensor) -> ExportError:
    bad = int((~torch.isfinite(value)).sum())
    return ExportError(
        "the model has weights that are not finite",
        where=name,
        why=f"{bad} of {value.numel()} values are NaN or infinite",
        remedy="the training diverged: go back to an earlier checkpoint",
    )
