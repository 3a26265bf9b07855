"""Fashion-MNIST, from the files of the Debian package ``dataset-fashion-mnist`` (MIT)."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from examples.digits import Images, Split
from policies.errors import SurgeryError

FOLDER = Path("/usr/share/datasets/fashion-mnist")
SPLIT_SEED = 0


class DataError(SurgeryError):
    """The images are not there."""


def load(folder: Path, train: int, validation: int, test: int) -> Split:
    """Draw the parts with a fixed seed: training and validation images from the 60,000, test images from the 10,000.

    Args:
        folder: Holds ``train-images-idx3-ubyte.gz`` and its siblings.
        train: Images to learn from.
        validation: Images to choose settings on.
        test: Images for the closing figures.

    Raises:
        DataError: If a file is missing.
    """
    known, unseen = _images(folder, "train"), _images(folder, "t10k")
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    order = torch.randperm(len(known), generator=generator)
    final = torch.randperm(len(unseen), generator=generator)[:test]
    return Split(known[order[:train]], known[order[train : train + validation]], unseen[final])


def _images(folder: Path, part: str) -> Images:
    pixels = _numbers(folder / f"{part}-images-idx3-ubyte.gz", header=16)
    labels = _numbers(folder / f"{part}-labels-idx1-ubyte.gz", header=8)
    return Images(pixels.reshape(-1, 28, 28), labels.long())


def _numbers(path: Path, header: int) -> Tensor:
    """The bytes of an IDX file behind its header, (n,) uint8."""
    if not path.is_file():
        raise DataError(
            f"{path.name} is missing",
            where=str(path),
            remedy="apt-get install dataset-fashion-mnist, or unpack it and pass --data FOLDER",
        )
    with gzip.open(path, "rb") as file:
        return torch.from_numpy(np.frombuffer(file.read(), np.uint8, offset=header).copy())
