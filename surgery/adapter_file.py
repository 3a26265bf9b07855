"""The adapter file: safetensors, with the plan and fingerprints of the base in its metadata."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from surgery.atomic import replace_file
from surgery.errors import CheckpointError
from surgery.operations.plan import Operation, Plan

KEY = "model-surgery"
"""The one entry of the metadata; with several, safetensors would write them in any order."""
VERSION = 1

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class AdapterFile:
    """What an adapter file holds.

    Attributes:
        path: Where it lies.
        plan: The plan that was applied.
        base: For each operation the fingerprint of the base rows it sat on.
        tensors: Adapters, what else trained, and buffers that moved, by state-dict key.
    """

    path: Path
    plan: Plan
    base: tuple[str, ...]
    tensors: Tensors

    def adapter(self, operation: Operation) -> Tensors:
        """State dict of one adapter."""
        prefix = f"{operation.path}."
        found = self.tensors.items()
        return {key.removeprefix(prefix): t for key, t in found if key.startswith(prefix)}

    def rest(self) -> Tensors:
        """What belongs to no adapter."""
        prefixes = tuple(f"{operation.path}." for operation in self.plan.operations)
        return {key: t for key, t in self.tensors.items() if not key.startswith(prefixes)}

    def misfit(self, why: str, remedy: str) -> CheckpointError:
        """The error that says why the adapters cannot be loaded."""
        what = "the adapters do not fit this model"
        return CheckpointError(what, where=str(self.path), why=why, remedy=remedy)

    def write(self) -> Path:
        """Write the file beside its place, then move it there: it is there whole or not at all.

        Raises:
            CheckpointError: If it cannot be written; what was there before is still there.
        """
        about = {
            "version": VERSION,
            "plan": self.plan.to_dict(),
            "base": self.base,
            "libraries": _versions("model-surgery", "torch", "transformers", "timm"),
        }
        about["sha256"] = digest(about, self.tensors)
        content = safetensors.torch.save(self.tensors, {KEY: json.dumps(about)})
        try:
            replace_file(self.path, content)
        except (OSError, ValueError) as error:  # ValueError: a path without a name, or with a null
            raise CheckpointError(
                "the adapter file cannot be written",
                where=str(self.path),
                why=f"{type(error).__name__}: {error}",
                remedy="give a file path in an existing folder that you may write to",
            ) from error
        return self.path


def read_file(path: str | os.PathLike[str]) -> AdapterFile:
    """Read an adapter file. Nothing in it is ever executed or unpickled.

    Raises:
        CheckpointError: If it is missing, broken, or something else.
    """
    path = Path(path)
    try:
        # Read once: safe_open opens the path a second time, and meets what replaced it meanwhile.
        content = path.read_bytes()
        tensors = dict(sorted(safetensors.torch.load(content).items()))
        metadata = _metadata(content)
    except Exception as error:  # a broken file fails in safetensors, torch or json, in many ways
        raise CheckpointError(
            "the adapter file cannot be read",
            where=str(path),
            why=f"{type(error).__name__}: {error}",
            remedy="check the path; a file that is there is truncated, or no safetensors",
        ) from error
    return _parse(path, metadata, tensors)


def _metadata(content: bytes) -> dict[str, str]:
    """The metadata in the header of a safetensors file that was found to be whole."""
    length = int.from_bytes(content[:8], "little")
    found = json.loads(content[8 : 8 + length]).get("__metadata__") or {}
    return {str(key): str(value) for key, value in found.items()}


def _parse(path: Path, metadata: dict[str, str], tensors: Tensors) -> AdapterFile:
    try:
        about = json.loads(metadata[KEY])
        if about["version"] != VERSION:
            raise ValueError(f"format version {about['version']}, this code reads {VERSION}")
        if about.pop("sha256") != digest(about, tensors):
            raise ValueError("its content is not what was written: sha256 differs")
        plan = Plan.from_dict(about["plan"])
        base = tuple(str(entry) for entry in about["base"])
        if len(base) != len(plan.operations):
            raise ValueError(f"{len(base)} fingerprints for {len(plan.operations)} adapters")
    except Exception as error:  # metadata can be anything at all
        raise CheckpointError(
            "this is no adapter file that can be read here",
            where=str(path),
            why=f"its metadata: {type(error).__name__}: {error}",
            remedy="load a file that surgery.save wrote, or update model-surgery",
        ) from error
    return AdapterFile(path, plan, base, tensors)


def digest(about: Mapping[str, Any], tensors: Tensors) -> str:
    """sha256 over the metadata and every tensor, in any order: a flipped bit is noticed.

    It guards against accidents. Whoever can write the file can write the digest.
    """
    found = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].cpu().contiguous()  # an empty one is read to the default device
        found.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        found.update(tensor.flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _versions(*packages: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
