"""Images in folders: one a class, or ``train`` and ``val`` that hold those."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torchvision.datasets import ImageFolder

from surgery.errors import RunError, told_by
from surgery.runs.samples import Data, Samples, existing, hold_back
from surgery.runs.schema import DataSpec

TRAIN = ("train", "training")
VALIDATION = ("val", "valid", "validation", "test")


def open_folder(spec: DataSpec, seed: int) -> Data:
    """Open an image folder.

    Raises:
        RunError: If it is missing, holds no class folders or no images, or training and validation have
            other classes.
    """
    assert spec.images is not None
    root = existing(spec.images, "such image folder")
    train_root = _inside(root, TRAIN)
    given = existing(spec.validation, "such validation folder") if spec.validation else None
    validation_root = given or (_inside(root, VALIDATION) if train_root else None)
    found = _open(train_root or root)
    if validation_root is None:
        train, validation = hold_back(_samples(found), spec.split, seed)
    else:
        other = _open(validation_root)
        _same_classes(found, other)
        train, validation = _samples(found), _samples(other)
    return Data("images", train, validation, tuple(found.classes))


def _inside(root: Path, names: tuple[str, ...]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _open(root: Path) -> ImageFolder:
    try:
        return ImageFolder(str(root))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RunError(
            "the image folder cannot be used",
            where=str(root),
            why=told_by(error),
            remedy="put the images of each class into a folder of its own: flowers/rose/1.jpg",
        ) from error


def _samples(folder: ImageFolder) -> Samples:
    return Samples(lambda i: _read(folder, i), tuple(folder.targets), len(folder))


def _read(folder: ImageFolder, index: int) -> Any:
    path = folder.samples[index][0]
    try:
        return folder.loader(path)
    except (OSError, ValueError, SyntaxError) as error:  # whatever PIL raises on a broken file
        raise RunError(
            "an image cannot be read",
            where=path,
            why=f"{type(error).__name__}: {error}",
            remedy="remove or replace the file",
        ) from error


def _same_classes(train: ImageFolder, validation: ImageFolder) -> None:
    if train.classes == validation.classes:
        return
    odd = sorted(set(train.classes) ^ set(validation.classes))
    raise RunError(
        "training and validation have other classes",
        where=str(validation.root),
        why=f"only one of them has {', '.join(odd[:5])}",
        remedy="give both the same class folders",
    )
