"""Examples that a model learns from, is chosen on and is judged by."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from surgery.atomic import replace_file

SPLIT_SEED = 0


@dataclass(frozen=True)
class Examples:
    """Inputs as they are stored and their labels.

    Attributes:
        inputs: (n, height, width) uint8 grey values or (n, length) int32 token numbers, 0 behind the end.
        labels: (n,) int64.
    """

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> Examples:
        return Examples(self.inputs[index], self.labels[index])

    def to(self, device: torch.device) -> Examples:
        """The same on another device."""
        return Examples(self.inputs.to(device), self.labels.to(device))

    def shuffled(self) -> Examples:
        """In an order that is the same in every run."""
        return self[torch.randperm(len(self), generator=torch.Generator().manual_seed(SPLIT_SEED))]


@dataclass(frozen=True)
class Parts:
    """Disjoint parts: settings are chosen on ``validation``; ``test`` is for the closing figures."""

    train: Examples
    validation: Examples
    test: Examples

    def to(self, device: torch.device) -> Parts:
        """The same on another device."""
        return Parts(*(part.to(device) for part in (self.train, self.validation, self.test)))

    def write(self, path: Path) -> None:
        """Keep as safetensors."""
        tensors = {
            f"{name}.{key}": tensor.contiguous()
            for name, part in vars(self).items()
            for key, tensor in asdict(part).items()
        }
        replace_file(path, save(tensors))

    @classmethod
    def read(cls, path: Path) -> Parts:
        """What :meth:`write` kept."""
        tensors = load_file(path)
        names = ("train", "validation", "test")
        return cls(*(Examples(tensors[f"{n}.inputs"], tensors[f"{n}.labels"]) for n in names))
