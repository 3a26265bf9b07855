"""Files appear whole or not at all: they are made and verified aside, then moved into place."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx

from exporters.errors import ExportError
from exporters.preflight import check_absent

_WHOLES = (".onnx", ".json")
"""Suffixes of files that others are parts of: a model's weights, a checkpoint's tensors."""
_CARD = ".md"


class Stage:
    """A folder beside the destination, on the same disk, so that moving is atomic."""

    def __init__(self, folder: Path, destination: Path) -> None:
        self.folder, self.destination = folder, destination

    def publish(self, left: Collection[Path] = (), *, overwrite: bool = True) -> None:
        """Move every file into the destination: parts, what names them (a model, a config), the card.

        Parts of another file never meet an old one of that name, nor does a model meet the card of
        another: the old one goes first. Whoever reads, or finds the folder after a crash, sees the old
        whole, the new whole, or none.

        Args:
            left: What belongs to an old file; of it, what was not replaced is removed at the end.
            overwrite: Whether files that are there may be replaced.

        Raises:
            ExportError: If they may not, and there are some by now.
        """
        files = sorted(self.folder.iterdir(), key=_turn)
        targets = [self.destination / file.name for file in files]
        if not overwrite:
            check_absent(targets)
        for file in files:
            _sync(file)
        for file in _stale(files):
            (self.destination / file.name).unlink(missing_ok=True)
        for file, target in zip(files, targets, strict=True):
            os.replace(file, target)
        for path in set(left) - set(targets):
            path.unlink(missing_ok=True)
        _sync(self.destination)

    def size(self, name: str) -> int:
        """Bytes of one model, its data file included."""
        files = (self.folder / name, self.folder / f"{name}.data")
        return sum(file.stat().st_size for file in files if file.exists())

    def reject(self, name: str, report: Mapping[str, Any]) -> Path:
        """Move one model into the destination under a name that nobody serves by mistake, with the report."""
        stem = Path(name).stem
        rejected = self.destination / f"{stem}.rejected.onnx"
        data = self.folder / f"{name}.data"
        if data.exists():
            _rename_data(self.folder / name, f"{rejected.name}.data")
            os.replace(data, self.destination / f"{rejected.name}.data")
        if (self.folder / name).exists():
            os.replace(self.folder / name, rejected)
        written = self.folder / f"{stem}.rejected.json"
        written.write_text(json.dumps(report, indent=2), encoding="utf-8")
        os.replace(written, self.destination / written.name)
        return rejected


def _turn(file: Path) -> int:
    if file.suffix == _CARD:
        return 2
    return 1 if file.suffix in _WHOLES else 0


def _stale(files: list[Path]) -> list[Path]:
    """What must not be seen beside the new parts: with parts the wholes, and the card in any case."""
    return [file for file in files if _turn(file) == 2 or _turn(file) > _turn(files[0]) == 0]


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
            "the files could not be written",
            where=str(destination),
            why=f"{error.strerror or error}",
            remedy="free some space or choose another folder; nothing was left behind",
        ) from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _rename_data(model: Path, name: str) -> None:
    """Point a model's external tensors to a data file of another name."""
    content = onnx.load(model, load_external_data=False)
    for tensor in content.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = name
    onnx.save(content, model)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
