"""Files appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from surgery.atomic import disk_errors
from surgery.errors import SurgeryError


@contextmanager
def folder_for(target: Path, overwrite: bool) -> Iterator[Path]:
    """A folder that becomes ``target`` at the end; if that is there, files are moved into it one by one.

    Raises:
        SurgeryError: If ``target`` holds files and may not be overwritten, or cannot be written.
    """
    with _writing(target):
        if target.exists() and not target.is_dir():
            raise NotADirectoryError("it is a file")
        if target.is_dir() and any(target.iterdir()) and not overwrite:
            raise FileExistsError("the folder is not empty; --overwrite replaces files in it")
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.absolute().parent))
    try:
        with _writing(target), disk_errors():
            made = aside / target.name
            made.mkdir()
            yield made
            for file in made.iterdir():
                _sync(file)
            if not target.exists():
                os.replace(made, target)
                return
            for file in sorted(made.iterdir()):
                os.replace(file, target / file.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a small new file.

    Raises:
        SurgeryError: If it is there already, or cannot be written.
    """
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        aside = Path(name)
        try:
            with open(handle, "w", encoding="utf-8") as file:
                file.write(text)
            _sync(aside)
            os.link(aside, path)  # unlike a rename, this never replaces a file
        finally:
            aside.unlink(missing_ok=True)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SurgeryError(
            "this cannot be written",
            where=str(path),
            why=f"{type(error).__name__}: {error.strerror or error}",
            remedy="name a place with room that you may write to and that is not taken",
        ) from error


def _sync(file: Path) -> None:
    with open(file, "rb") as opened:
        os.fsync(opened.fileno())
