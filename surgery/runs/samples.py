"""What is learned from: items beside their labels, wherever they lie."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from surgery.errors import RunError
from surgery.runs.schema import DataSpec

Kind = Literal["images", "texts"]


@dataclass(frozen=True)
class Samples:
    """Items and their labels.

    Attributes:
        read: Item by number: a PIL image, or a text.
        targets: Class number of each; empty if there are no labels.
        size: How many there are.
    """

    read: Callable[[int], Any]
    targets: tuple[int, ...]
    size: int

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Any, int | None]:
        return self.read(index), self.targets[index] if self.targets else None

    def part(self, numbers: Sequence[int]) -> Samples:
        """Some of them, in the order given."""
        targets = tuple(self.targets[n] for n in numbers) if self.targets else ()
        return replace(
            self, read=lambda i: self.read(numbers[i]), targets=targets, size=len(numbers)
        )


@dataclass(frozen=True)
class Data:
    """What is trained on and what is evaluated on.

    Attributes:
        kind: What an item is.
        train: Samples for training.
        validation: Samples for evaluation; the training never sees them.
        labels: Name of each class; empty if texts are learned without labels.
    """

    kind: Kind
    train: Samples
    validation: Samples
    labels: tuple[str, ...]


def open_data(spec: DataSpec, seed: int) -> Data:
    """Open what a training file names under ``data``.

    Args:
        spec: The section.
        seed: Decides what is held back where there is no validation data.

    Raises:
        RunError: If something is missing, empty, broken, or has no labels.
    """
    from surgery.runs import image_folder, saved_dataset, table

    if spec.images:
        return image_folder.open_folder(spec, seed)
    if spec.dataset:
        return saved_dataset.open_dataset(spec, seed)
    return table.open_table(spec, seed)


def hold_back(
    samples: Samples, share: float, seed: int, labels: Sequence[str] = ()
) -> tuple[Samples, Samples]:
    """Split into training and validation: ``share`` of every class, at least one sample of each.

    Args:
        samples: What there is.
        share: Of each class.
        seed: Decides which.
        labels: Names of the classes, for errors.

    Raises:
        RunError: If a class has a single sample, or there are fewer than two samples.
    """
    groups: dict[int, list[int]] = defaultdict(list)
    for number in range(len(samples)):
        groups[samples.targets[number] if samples.targets else 0].append(number)
    generator = torch.Generator().manual_seed(seed)
    held: list[int] = []
    for target, members in groups.items():
        if len(members) < 2:
            raise RunError(
                "there is too little to hold back for validation",
                why=f"class {labels[target] if labels else target} has one sample",
                remedy="give more samples, or validation data of its own: data.validation",
            )
        count = min(max(1, round(share * len(members))), len(members) - 1)
        order = torch.randperm(len(members), generator=generator)[:count]
        held += [members[i] for i in order.tolist()]
    out = set(held)
    kept = [number for number in range(len(samples)) if number not in out]
    return samples.part(kept), samples.part(sorted(held))


def existing(path: str, what: str) -> Path:
    """A path that is there.

    Raises:
        RunError: If it is not.
    """
    found = Path(path).expanduser()
    if not found.exists():
        raise RunError(
            f"there is no {what}",
            where=path,
            why=f"seen from {Path.cwd()}",
            remedy="paths in a training file are relative to the folder you are in",
        )
    return found
