"""Singular directions kept on the disk, by the content of the weight that they belong to.

``MODEL_SURGERY_CACHE`` names the folder, or says ``off``; unset, it is the user's cache folder of the
platform. ``MODEL_SURGERY_CACHE_GB`` limits its size (2 by default); what was used least recently goes first.
The folder may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

import platformdirs
import safetensors.torch
import torch
from torch import Tensor

from surgery.adapters.krylov import Triplets
from surgery.atomic import replace_file
from surgery.errors import StateError

FOLDER, SIZE = "MODEL_SURGERY_CACHE", "MODEL_SURGERY_CACHE_GB"
ALGORITHM = 3
"""Goes up when the same weight would get other directions."""
WORTH_KEEPING = 2**17
"""Entries of a weight from which reading is faster than computing."""

_LOG = logging.getLogger(__name__)
_ABANDONED = 3600.0


@dataclass(frozen=True)
class Entry:
    """The place of the triplets of one weight.

    Attributes:
        path: Of a safetensors file named by the key.
        key: sha256 over the weight and all that decides its directions.
        shapes: Of U, S and Vh.
        dtype: Of all three.
    """

    path: Path
    key: str
    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype

    def read(self) -> Triplets | None:
        """The triplets, on the CPU; None if they are not there, or the file is not what was written."""
        try:
            content = self.path.read_bytes()
            os.utime(self.path)
            tensors = safetensors.torch.load(content)
            u, s, vh = tensors["u"], tensors["s"], tensors["vh"]
            if bytes(_bytes(tensors["sha256"])) != _digest(self.key, (u, s, vh)):
                raise ValueError("it is damaged, or of another weight")
            if tuple(t.shape for t in (u, s, vh)) != self.shapes or u.dtype != self.dtype:
                raise ValueError("it is of another shape")
        except FileNotFoundError:
            return None
        except Exception as error:  # a broken file fails in many ways, and is computed anew in all
            _LOG.warning("%s cannot be used and is computed anew: %s", self.path, error)
            return None
        return u, s, vh

    def write(self, triplets: Triplets) -> None:
        """Keep the triplets; where that is impossible (a full disk) they are computed again next time."""
        u, s, vh = (t.detach().cpu().contiguous() for t in triplets)
        digest = torch.tensor(list(_digest(self.key, (u, s, vh))), dtype=torch.uint8)
        content = safetensors.torch.save({"u": u, "s": s, "vh": vh, "sha256": digest})
        limit = _limit()
        if len(content) > limit:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self.path, content)
            _trim(self.path, limit)
        except OSError as error:
            _LOG.info("singular directions are not kept in %s: %s", self.path.parent, error)


def entry(weight: Tensor, count: int) -> Entry | None:
    """Where the ``count`` leading triplets of ``weight`` are kept; None if they are not to be.

    Raises:
        StateError: If the limit in the environment is no number.
    """
    where = folder()
    if where is None or weight.numel() < WORTH_KEEPING:
        return None
    out, width = weight.shape
    key = _key(weight, count)
    shapes = (out, count), (count,), (count, width)
    return Entry(where / f"{key}.safetensors", key, shapes, weight.dtype)


def folder() -> Path | None:
    """Where singular directions are kept, or None if they are not."""
    said = os.environ.get(FOLDER)
    if said is None:
        return Path(platformdirs.user_cache_path("model-surgery")) / "svd"
    return None if said.lower() in ("", "0", "off", "none") else Path(said).expanduser() / "svd"


def _key(weight: Tensor, count: int) -> str:
    about = (ALGORITHM, torch.__version__, weight.device.type, weight.dtype, weight.shape, count)
    found = hashlib.sha256(repr(about).encode())
    found.update(_bytes(weight))
    return found.hexdigest()


def _digest(key: str, tensors: Triplets) -> bytes:
    found = hashlib.sha256(key.encode())
    for tensor in tensors:
        found.update(_bytes(tensor))
    return found.digest()


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().data


def _limit() -> int:
    said = os.environ.get(SIZE, "2")
    try:
        return int(float(said) * 2**30)
    except (ValueError, OverflowError) as error:
        raise StateError(
            f"{SIZE}={said!r} is no size", remedy="give a number of gigabytes, 2 for example"
        ) from error


def _trim(newest: Path, limit: int) -> None:
    """Drop what was used least recently until the folder fits, and what killed writers left behind."""
    kept: list[tuple[float, int, Path]] = []
    for item in os.scandir(newest.parent):
        with contextlib.suppress(OSError):  # another process may be trimming too
            status = item.stat()
            if item.name.endswith(".safetensors"):
                kept.append((status.st_mtime, status.st_size, Path(item.path)))
            elif status.st_mtime < time.time() - _ABANDONED:
                os.unlink(item.path)
    size = sum(length for _, length, _ in kept)
    for _, length, path in sorted(kept):
        if size <= limit:
            break
        if path != newest:
            with contextlib.suppress(OSError):
                path.unlink()
            size -= length
