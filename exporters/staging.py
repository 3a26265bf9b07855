"""Files appear whole or not at all: they are made and verified aside, then moved into place."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from exporters.errors import ExportError


class Stage:
    """A folder beside the destination, on the same disk, so that moving is atomic."""

    def __init__(self, folder: Path, destination: Path) -> None:
        self.folder, self.destination = folder, destination

    def publish(self) -> None:
        """Move every file into the destination; data files first, so that no model lacks its data."""
        files = sorted(self.folder.iterdir(), key=lambda file: file.suffix == ".onnx")
        for file in files:
            _sync(file)
        for file in files:
            os.replace(file, self.destination / file.name)
        _sync(self.destination)

    def keep_rejected(self, name: str) -> Path:
        """Move one file into the destination under a name that nobody serves by mistake."""
        rejected = self.destination / f"{Path(name).stem}.rejected.onnx"
        os.replace(self.folder / name, rejected)
        data = self.folder / f"{name}.data"
        if data.exists():
            # The model refers to its data by this name.
            os.replace(data, self.destination / data.name)
        return rejected


@contextmanager
def stage(destination: Path) -> Iterator[Stage]:
    """Open a stage beside ``destination``; whatever is left on it at the end is removed.

    Raises:
        ExportError: If the disk fills up or the folder cannot be written.
    """
    folder = None
    try:
        folder = Path(tempfile.mkdtemp(prefix=".export-", dir=destination))
        yield Stage(folder, destination)
    except OSError as error:
        raise ExportError(
            "the ONNX file could not be written",
            where=str(destination),
            why=f"{error.strerror or error}",
            remedy="free some space or choose another folder; nothing was left behind",
        ) from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
