"""The digits: a fixed, stratified, disjoint split, prepared as the model expects."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

from examples import digits


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in the format of the real one: 20 rows a class; the first two pixels number the row."""
    rows = [[index % 250, index // 250, *[0] * 782, index // 20] for index in range(200)]
    path = tmp_path / "digits.csv.gz"
    path.write_bytes(gzip.compress("\n".join(",".join(map(str, r)) for r in rows).encode()))
    monkeypatch.setattr(digits, "fetch", lambda name: path)
    return path


def numbers(images: digits.Images) -> Tensor:
    return images.pixels[:, 0, 0].long() + 250 * images.pixels[:, 0, 1].long()


def test_parts_are_disjoint_stratified_and_always_the_same(stored: Path) -> None:
    split, again = digits.load(60, 40, 50), digits.load(60, 40, 50)
    parts = (split.train, split.validation, split.test)
    assert [len(part) for part in parts] == [60, 40, 50]
    assert len(torch.cat([numbers(part) for part in parts]).unique()) == 150
    for part, size in zip(parts, (6, 4, 5), strict=True):
        assert part.labels.bincount().tolist() == [size] * 10
        assert (numbers(part) // 20 == part.labels).all()
    assert (numbers(split.test) == numbers(again.test)).all()


def test_a_smaller_training_set_is_part_of_a_larger_one(stored: Path) -> None:
    small, large = digits.load(20, 0, 0).train, digits.load(60, 0, 0).train
    assert set(numbers(small).tolist()) < set(numbers(large).tolist())


def test_preprocess_normalises_as_the_model_was_trained() -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10)
    model.pretrained_cfg["mean"], model.pretrained_cfg["std"] = (0.1, 0.2, 0.3), (0.5, 0.25, 1.0)
    white = digits.Preprocess(model, 56)(torch.full((2, 28, 28), 255, dtype=torch.uint8))
    assert white.shape == (2, 3, 56, 56)
    assert white.dtype == torch.float32
    expected = torch.tensor([0.9 / 0.5, 0.8 / 0.25, 0.7 / 1.0])
    torch.testing.assert_close(white.amax((0, 2, 3)), expected)
    torch.testing.assert_close(white.amin((0, 2, 3)), expected)
