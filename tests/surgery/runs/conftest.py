"""Small data on disk, small models, and one run that many tests look at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from torch import nn

from surgery.runs.samples import open_data
from surgery.runs.schema import RunSpec
from surgery.runs.train import Run

COLOURS = {"blue": (30, 30, 200), "green": (30, 200, 30), "red": (200, 30, 30)}
SIZES = {"depth": 2, "img_size": 32, "embed_dim": 32, "num_heads": 2}


def images(root: Path, each: int = 12) -> Path:
    """Noisy images of three colours, a folder a class."""
    random = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for number in range(each):
            pixels = np.array(colour) + random.normal(0, 60, (40, 40, 3))
            Image.fromarray(pixels.clip(0, 255).astype("uint8")).save(root / name / f"{number}.png")
    return root


def spec(folder: Path, data: dict[str, Any], **changes: Any) -> RunSpec:
    """A training file as it is read: SRLoRA that switches, on the CPU."""
    plain: dict[str, Any] = {
        "model": {"name": "timm:vit_tiny_patch16_224", "set": SIZES},
        "policy": {"name": "vit-attn-qv", "adapter": "srlora", "rank": 2, "target_rank": 8},
        "data": data,
        "optimizer": {"lr": 0.01},
        "schedule": {"epochs": 2, "batch": 5, "accumulate": 2},
        "output": {"folder": str(folder), "tensorboard": False},
        "device": "cpu",
    }
    for key, value in changes.items():
        plain[key] = {**plain.get(key, {}), **value} if isinstance(value, dict) else value
    return RunSpec.model_validate(plain)


def vit(classes: int = 3) -> nn.Module:
    """The model of ``spec``, with dropout, so that random numbers matter."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {**SIZES, "num_classes": classes}
    return timm.create_model("vit_tiny_patch16_224", **sizes, proj_drop_rate=0.1)


def run(asked: RunSpec, model: nn.Module | None = None) -> Run:
    """What a training file says, ready to go."""
    data = open_data(asked.data, asked.seed)
    return Run(asked, data, model or vit(len(data.labels)))


def write(path: Path, asked: RunSpec) -> Path:
    """As a training file."""
    path.write_text(yaml.safe_dump(asked.model_dump(mode="json"), sort_keys=False))
    return path


Trained = tuple[RunSpec, dict[str, Any]]


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return images(tmp_path_factory.mktemp("data") / "colours")


@pytest.fixture(scope="session")
def trained(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A finished run and its metrics."""
    asked = spec(tmp_path_factory.mktemp("runs") / "whole", {"images": str(colours)})
    return asked, run(asked).train()


Weights = Callable[[Path], dict[str, torch.Tensor]]
