"""Fashion-MNIST, from the files of the Debian package ``dataset-fashion-mnist`` (MIT)."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.study.parts import Examples, Parts
from benchmarks.study.sources import DataError

TRAIN, VALIDATION = 4000, 2000


def load(folder: Path) -> Parts:
    """4,000 images to learn from and 2,000 to choose on, of the 60,000; all 10,000 test images.

    Args:
        folder: Holds ``fashion-mnist/train-images-idx3-ubyte.gz`` and its siblings.

    Raises:
        DataError: If a file is missing.
    """
    known = _images(folder / "fashion-mnist", "train").shuffled()
    unseen = _images(folder / "fashion-mnist", "t10k")
    return Parts(known[:TRAIN], known[TRAIN : TRAIN + VALIDATION], unseen)


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
