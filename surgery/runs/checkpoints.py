"""Checkpoints: complete ones carry a manifest; anything else is no checkpoint."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from surgery.atomic import replace_file
from surgery.errors import RunError

MANIFEST = "manifest.json"
PREFIX = "checkpoint-"


def seal(folder: Path) -> None:
    """Write the manifest of a folder that is complete: the hash of each of its files.

    Raises:
        OSError: If it cannot be written.
    """
    hashes = {file.name: _sha256(file) for file in sorted(folder.iterdir()) if file.is_file()}
    replace_file(folder / MANIFEST, json.dumps(hashes, indent=1).encode())


def latest(folder: Path) -> Path | None:
    """The last complete checkpoint below ``folder``, checked; None if there is none.

    Raises:
        RunError: If its files are not those that were written.
    """
    sealed = [path for path in _all(folder) if (path / MANIFEST).is_file()]
    if not sealed:
        return None
    newest = max(sealed, key=step_of)
    _check(newest)
    return newest


def sweep(folder: Path) -> None:
    """Remove what a killed process left half-written."""
    for path in _all(folder):
        if not (path / MANIFEST).is_file():
            shutil.rmtree(path, ignore_errors=True)


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix(PREFIX))


def _all(folder: Path) -> list[Path]:
    found = folder.glob(f"{PREFIX}*")
    return [path for path in found if path.name.removeprefix(PREFIX).isdecimal()]


def _check(checkpoint: Path) -> None:
    try:
        hashes = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        bad = next((n for n, h in hashes.items() if _sha256(checkpoint / n) != h), None)
        why = f"{bad} is not the file that was written" if bad else None
    except (OSError, ValueError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
    if why is not None:
        raise RunError(
            "the checkpoint is broken",
            where=str(checkpoint),
            why=why,
            remedy="remove that folder: --resume then goes on from the one before it",
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
