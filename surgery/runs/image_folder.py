"""Images in folders: one a class, or ``train`` and ``val`` that hold those."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torchvision.datasets import ImageFolder

from surgery.errors import RunError, told_by
from surgery.runs.samples import Data, Samples, existing, hold_back
from surgery.runs.schema import DataSpec

TRAIN = ("train", "training")
VALIDATION = ("val", "valid", "validation")


class _Folders(ImageFolder):  # type: ignore[misc]
    """An image folder without what tools leave beside the classes (``.ipynb_checkpoints``, ``__MACOSX``)."""

    def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
        """Names and numbers of the classes.

        Raises:
            FileNotFoundError: If there are none.
        """
        names = [path.name for path in _folders(Path(directory))]
        if not names:
            raise FileNotFoundError("it holds no folder of a class")
        return names, {name: number for number, name in enumerate(names)}


def open_folder(spec: DataSpec, seed: int) -> Data:
    """Open an image folder.

    Raises:
        RunError: If it is missing, holds fewer than two class folders or no images, or training and validation
            have other classes.
    """
    assert spec.images is not None
    root = existing(spec.images, "such image folder")
    train_root = _inside(root, TRAIN)
    given = existing(spec.validation, "such validation folder") if spec.validation else None
    validation_root = given or (_inside(root, VALIDATION) if train_root else None)
    found = _open(train_root or root)
    if validation_root is None:
        train, validation = hold_back(_samples(found), spec.split, seed, found.classes)
    else:
        other = _open(validation_root)
        _same_classes(found, other)
        train, validation = _samples(found), _samples(other)
    return Data("images", train, validation, tuple(found.classes))


def _inside(root: Path, names: tuple[str, ...]) -> Path | None:
    found = {path.name.lower(): path for path in _folders(root)}
    return next((found[name] for name in names if name in found), None)


def _folders(root: Path) -> list[Path]:
    """Those that hold something for us, by name."""
    every = (path for path in root.iterdir() if path.is_dir())
    return sorted(path for path in every if not path.name.startswith((".", "__")))


def _open(root: Path) -> ImageFolder:
    try:
        found = _Folders(str(root))
        _check_classes(found)
        return found
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RunError(
            "the image folder cannot be used",
            where=str(root),
            why=told_by(error),
            remedy="put the images of each class into a folder of its own: flowers/rose/1.jpg",
        ) from error


def _check_classes(folder: ImageFolder) -> None:
    if len(folder.classes) > 1:
        return
    (only,) = folder.classes
    inner = _folders(Path(folder.root) / only)
    raise RunError(
        "the images are of one class",
        where=str(folder.root),
        why=f"it holds the folder {only!r} alone",
        remedy=f"name the folder of the classes: {Path(folder.root) / only}"
        if inner
        else "put the images of each class into a folder of its own: flowers/rose/1.jpg",
    )


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
