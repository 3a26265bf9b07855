"""The safetensors files of a checkpoint folder: read, copied and written over tensor by tensor."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from surgery.errors import CheckpointError

_INDEX = "model.safetensors.index.json"
_OTHER_WEIGHTS = {".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf"}


@dataclass(frozen=True)
class Shards:
    """The safetensors files of a checkpoint folder.

    Attributes:
        path: The folder.
        home: The file of every key.
    """

    path: Path
    home: dict[str, str]

    @classmethod
    def open(cls, path: Path) -> Shards:
        """Read the index, or the keys of the one file there is."""
        try:
            return cls(path, _home(path))
        except Exception as error:  # whatever a broken index or header raises
            raise CheckpointError(
                "this is no checkpoint that can be folded on disk",
                where=str(path),
                why=f"{type(error).__name__}: {error}",
                remedy=f"give a folder with one .safetensors file, or with {_INDEX} and its shards",
            ) from error

    def read(self, key: str) -> Tensor:
        """One tensor; nothing else is read."""
        try:
            with safetensors.safe_open(self.path / self.home[key], framework="pt") as shard:
                tensor: Tensor = shard.get_tensor(key)
        except Exception as error:  # what safetensors raises for a broken file varies
            raise CheckpointError(
                f"{key} cannot be read",
                where=str(self.path / self.home[key]),
                why=f"{type(error).__name__}: {error}",
                remedy="download the checkpoint again",
            ) from error
        return tensor

    def copy_to(self, folder: Path) -> tuple[str, ...]:
        """Copy the folder, but for weights in other forms; returns their names."""
        shards, left_out = set(self.home.values()), []
        items = sorted(self.path.iterdir())  # before the new folder, which may lie among them
        folder.mkdir()
        for item in items:
            stale = item.suffix in _OTHER_WEIGHTS or item.suffix == ".safetensors"
            if item.is_dir() or (stale and item.name not in shards):
                left_out.append(item.name)
            else:
                shutil.copyfile(item, folder / item.name)
        return tuple(left_out)

    def write(self, folder: Path, key: str, value: Tensor) -> None:
        """Write over the bytes of one tensor in the copy; dtype and shape are those of before."""
        path = folder / self.home[key]
        start, header = _header(path)
        first, last = header[key]["data_offsets"]
        content = value.contiguous().flatten().view(torch.uint8).numpy().data
        if len(content) != last - first:
            raise ValueError(f"{key}: {len(content)} bytes do not fit into {last - first}")
        with open(path, "r+b") as shard:
            shard.seek(start + first)
            shard.write(content)

    def sync(self, folder: Path) -> None:
        """Wait until every shard is on the disk."""
        for name in set(self.home.values()):
            with open(folder / name, "rb") as shard:
                os.fsync(shard.fileno())


def _home(path: Path) -> dict[str, str]:
    """The file of every key, as the files say; the index may say nothing else."""
    index = _index(path)
    home: dict[str, str] = {}
    for name in sorted(set(index.values())) or [_only(path)]:
        for key in _header(path / name)[1]:
            if key in home:
                raise ValueError(f"{key} is both in {home[key]} and in {name}")
            home[key] = name
    astray = next((key for key, name in index.items() if home.get(key) != name), None)
    if astray is not None:
        raise ValueError(f"{_INDEX} has {astray} in a file without it")
    return home


def _index(path: Path) -> dict[str, str]:
    """The file of every key, as the index has it; empty where there is none."""
    if not (path / _INDEX).exists():
        return {}
    home: dict[str, str] = json.loads((path / _INDEX).read_text(encoding="utf-8"))["weight_map"]
    if any(Path(name).name != name for name in home.values()):
        raise ValueError("the index leads out of the folder")
    return home


def _only(path: Path) -> str:
    (only,) = path.glob("*.safetensors")
    return only.name


def _header(path: Path) -> tuple[int, dict[str, Any]]:
    """Where the data of a safetensors file begins, and dtype, shape and offsets of each tensor."""
    with open(path, "rb") as shard:
        size = int.from_bytes(shard.read(8), "little")
        if size > path.stat().st_size:
            raise ValueError(f"{path.name} is no safetensors file")
        header = json.loads(shard.read(size))
    header.pop("__metadata__", None)
    return 8 + size, header
