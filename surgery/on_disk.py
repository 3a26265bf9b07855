"""Folding on disk: an adapter file into the safetensors shards of a checkpoint, without the model.

A folded weight has the dtype and the shape of the original, so it has its bytes' place too: every
shard is copied as it is, and only the bytes of what changes are written over. Memory holds one
weight at a time, whatever the size of the checkpoint.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from surgery.adapter_file import AdapterFile, read_file
from surgery.adapters.base import Adapter
from surgery.errors import CheckpointError
from surgery.operations.fold import fold_weight
from surgery.operations.graft import Graft
from surgery.operations.identity import fingerprint_of
from surgery.operations.make import make_adapter
from surgery.operations.plan import Operation
from surgery.operations.rows import as_matrix, take
from surgery.shards import Shards

_BY_MODEL = "load the model, surgery.load, surgery.fold, and save the model"


@dataclass(frozen=True)
class FoldedCheckpoint:
    """What ``fold_checkpoint`` wrote.

    Attributes:
        path: The new folder.
        folded: Keys of the folded weights.
        replaced: Keys of what else trained, or moved in training.
        left_out: Files of the old folder that hold weights in another form, and would be stale.
    """

    path: Path
    folded: tuple[str, ...]
    replaced: tuple[str, ...]
    left_out: tuple[str, ...]

    def __str__(self) -> str:
        left = f", {', '.join(self.left_out)} left out" if self.left_out else ""
        return (
            f"{self.path}: {len(self.folded)} weights folded, {len(self.replaced)} replaced{left}"
        )


def fold_checkpoint(
    in_dir: str | os.PathLike[str], adapter: str | os.PathLike[str], out_dir: str | os.PathLike[str]
) -> FoldedCheckpoint:
    """Fold an adapter file into a checkpoint folder; the result is that of ``surgery.fold``, bit for bit.

    The other files of the folder (configuration, tokenizer) are copied. ``out_dir`` is there whole or not
    at all.

    Args:
        in_dir: Holds one safetensors file, or shards with ``model.safetensors.index.json``. Its keys may
            lack a prefix of the adapted model's, or have one more: ``bert.encoder...`` and ``encoder...``.
        adapter: What ``surgery.save`` wrote.
        out_dir: A folder that does not exist yet, or is empty.

    Raises:
        CheckpointError: A file is missing or broken, the weights are not those the adapters were trained
            on, or something that trained has no place in the checkpoint.
        StateError: A folded weight would not be finite.
    """
    target, file, source = Path(out_dir), read_file(adapter), Shards.open(Path(in_dir))
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(
            "the new folder is there already",
            where=str(target),
            remedy="name a folder that does not exist yet; nothing is written over",
        )
    groups, rest = _groups(file), file.rest()
    names = _names(file, source, [*groups, *rest])
    beside = target.absolute().with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        left_out = source.copy_to(beside)
        for key, operations in groups.items():
            source.write(beside, names[key], _folded(file, operations, source.read(names[key])))
        for key, value in rest.items():
            source.write(beside, names[key], _fitting(file, names[key], value, source))
        source.sync(beside)
        os.replace(beside, target)
    except OSError as error:
        raise CheckpointError(
            "the folded checkpoint cannot be written",
            where=str(target),
            why=f"{type(error).__name__}: {error}",
            remedy="make room, and give a folder inside one that you may write to",
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    folded, replaced = (tuple(names[key] for key in keys) for keys in (groups, rest))
    return FoldedCheckpoint(target, folded, replaced, left_out)


def _groups(file: AdapterFile) -> dict[str, list[tuple[Operation, str]]]:
    """The operations on each weight, with the fingerprints of their rows."""
    grouped: dict[str, list[tuple[Operation, str]]] = defaultdict(list)
    for operation, base in zip(file.plan.operations, file.base, strict=True):
        grouped[operation.projection.weight_name].append((operation, base))
    return grouped


def _folded(file: AdapterFile, operations: list[tuple[Operation, str]], weight: Tensor) -> Tensor:
    """round(weight + corrections + deltas), by the same steps as ``surgery.fold``."""
    first = operations[0][0]
    p = first.projection
    graft = Graft(p.layout, first.access, p.weight_out_features)
    for operation, base in operations:
        _check_base(file, operation, base, weight)
        adapter = make_adapter(operation, "cpu")
        rows = take(as_matrix(weight, p.layout), operation.projection.rows)
        adapter.read_base(rows.float())
        _fill(file, adapter, operation)
        graft.place(operation.slot, adapter, operation.projection.rows)
    fold_weight(p.weight_name, graft, weight, lambda _: None)
    return weight


def _fill(file: AdapterFile, adapter: Adapter, operation: Operation) -> None:
    try:
        adapter.load_state_dict(file.adapter(operation))
    except RuntimeError as error:  # load_state_dict names every key and shape that does not fit
        remedy = "save the file again with this version of the adapter"
        raise file.misfit(f"{operation.path}: {error}", remedy) from error


def _check_base(file: AdapterFile, operation: Operation, base: str, weight: Tensor) -> None:
    p = operation.projection
    matrix = as_matrix(weight, p.layout)
    fits = matrix.shape == (p.weight_out_features, p.in_features)
    found = fingerprint_of(weight, p) if fits else f"of shape {tuple(matrix.shape)}"
    if found != base:
        raise file.misfit(
            f"another base: {operation.name} is {found[:24]}…, trained on {base[:24]}…",
            "give the checkpoint that the adapters were trained on, in the same dtype",
        )


def _fitting(file: AdapterFile, key: str, value: Tensor, source: Shards) -> Tensor:
    """What else trained, if it fits into the place of the old value."""
    old = source.read(key)
    if old.shape != value.shape:
        raise file.misfit(
            f"{key}: the checkpoint has {tuple(old.shape)}, the file {tuple(value.shape)}",
            _BY_MODEL,
        )
    return value.to(old.dtype)


def _names(file: AdapterFile, source: Shards, keys: list[str]) -> dict[str, str]:
    """The checkpoint's name of each key: the same, or all with one prefix more, or less.

    Raises:
        CheckpointError: If there is not exactly one such prefix.
    """
    first = keys[0]
    longer = {name.removesuffix(first) for name in source.home if name.endswith(f".{first}")}
    shorter = {first[: i + 1] for i, letter in enumerate(first) if letter == "."}
    found = [dict(zip(keys, keys, strict=True))]
    found += [{key: prefix + key for key in keys} for prefix in sorted(longer)]
    found += [
        {key: key.removeprefix(prefix) for key in keys}
        for prefix in sorted(shorter)
        if all(key.startswith(prefix) for key in keys)
    ]
    complete = [names for names in found if source.home.keys() >= set(names.values())]
    if complete and (complete[0] == found[0] or len(complete) == 1):
        return complete[0]
    missing = next((key for key in keys if key not in source.home), first)
    raise file.misfit(
        f"{len(complete)} prefixes fit the keys of the checkpoint; {missing} is not in it as it is",
        _BY_MODEL,
    )
