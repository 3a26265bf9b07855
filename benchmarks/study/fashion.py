"""Fashion-MNIST, from the files of the Debian package ``dataset-fashion-mnist`` (MIT)."""

from __future__ import annotations

import gzip
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.study.parts import Examples, Parts
from benchmarks.study.sources import DataError


def load(folder: Path, train: int = 4000, validation: int = 2000, test: int | None = None) -> Parts:
    """Some of the 60,000 images to learn from, some to choose on, and test images.

    Args:
        folder: Holds ``fashion-mnist/train-images-idx3-ubyte.gz`` and its siblings.
        train: Images to learn from.
        validation: Images to choose on.
        test: Images to judge by; None: all 10,000.

    Raises:
        DataError: If a file is missing.
    """
    known = _images(folder / "fashion-mnist", "train").shuffled()
    unseen = _images(folder / "fashion-mnist", "t10k")
    if test is not None:
        unseen = unseen.shuffled()[:test]
    return Parts(known[:train], known[train : train + validation], unseen)


small = partial(load, train=1000, validation=1000, test=3000)


def _images(folder: Path, part: str) -> Examples:
    pixels = _numbers(folder / f"{part}-images-idx3-ubyte.gz", header=16)
    labels = _numbers(folder / f"{part}-labels-idx1-ubyte.gz", header=8)
    return Examples(pixels.reshape(-1, 28, 28), labels.long())


def _numbers(path: Path, header: int) -> Tensor:
    """The bytes of an IDX file behind its header, (n,) uint8."""
    if not path.is_file():
        raise DataError(
            f"{path.name} is missing",
            where=str(path.parent),
            remedy="apt-get install dataset-fashion-mnist, and link its folder fashion-mnist there",
        )
    with gzip.open(path, "rb") as file:
        return torch.from_numpy(np.frombuffer(file.read(), np.uint8, offset=header).copy())
