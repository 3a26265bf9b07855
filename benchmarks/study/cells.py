"""Photographs of solar cells, intact or defective, from the package ``elpv-dataset`` (CC-BY-NC-SA 4.0)."""

from __future__ import annotations

import io
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.study.parts import Examples, Parts
from benchmarks.study.sources import wheel

SIZE = 112
TRAIN, VALIDATION = 1200, 400
DEFECTIVE = 0.5


def load(folder: Path) -> Parts:
    """1,200 cells to learn from, 400 to choose on, 1,024 to judge by; two classes, probability of a defect over 0.5.

    Raises:
        DataError: If the package is missing.
    """
    with wheel(folder, "elpv_dataset-1.0.0.post1") as archive:
        lines = archive.read("elpv_dataset/data/labels.csv").decode().split("\n")
        rows = [line.split() for line in lines if line.strip()]
        pixels = torch.stack([_pixels(archive, row[0]) for row in rows])
    labels = torch.tensor([float(row[1]) > DEFECTIVE for row in rows]).long()
    known = Examples(pixels, labels).shuffled()
    return Parts(known[:TRAIN], known[TRAIN : TRAIN + VALIDATION], known[TRAIN + VALIDATION :])


def _pixels(archive: ZipFile, name: str) -> Tensor:
    with Image.open(io.BytesIO(archive.read(f"elpv_dataset/data/{name}"))) as image:
        small = image.convert("L").resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(small).copy())
