"""One training run, and its record on disk."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import surgery
from benchmarks.record import RESULTS
from benchmarks.study.methods import METHODS
from examples import dinov2, training
from examples.digits import CLASSES, Images, Preprocess, Split
from examples.training import Recipe
from surgery.atomic import replace_file

FOLDER = RESULTS / "study"
IMAGE_SIZE = 56


@dataclass(frozen=True)
class Run:
    """What was tried: a method, a peak learning rate, a seed and a number of steps."""

    method: str
    rate: float
    seed: int
    steps: int

    @property
    def path(self) -> Path:
        """Where its record lies."""
        return FOLDER / f"{self.method}-{self.rate:g}-{self.steps}-{self.seed}.json"

    def record(self) -> dict[str, Any] | None:
        """The record, if it was run before."""
        if not self.path.is_file():
            return None
        found: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
        return found


def perform(run: Run, images: Split) -> dict[str, Any]:
    """Train, evaluate, keep; a run that was kept before is read instead."""
    known = run.record()
    if known is not None:
        return known
    started = time.perf_counter()
    torch.manual_seed(run.seed)
    base = dinov2.build(CLASSES, image_size=IMAGE_SIZE)
    preprocess = Preprocess(base, IMAGE_SIZE)
    head = sum(p.numel() for p in base.head.parameters())
    method = METHODS[run.method]
    model = method.prepare(base, run.seed)
    losses = _train(model, images.train, preprocess, run, method.recomposes)
    found = {
        **asdict(run),
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "head": head if run.method != "full" else 0,
        "validation": _accuracy(model, images.validation, preprocess),
        "test": _accuracy(model, images.test, preprocess),
        "losses": [round(loss, 5) for loss in losses],
        "seconds": round(time.perf_counter() - started, 1),
    }
    run.path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(run.path, f"{json.dumps(found)}\n".encode())
    return found


def _train(
    model: nn.Module, images: Images, preprocess: nn.Module, run: Run, recomposes: bool
) -> list[float]:
    recipe = Recipe(run.rate, steps=run.steps)
    optimizer = training.optimizer_of(model, recipe)
    recomposer = surgery.Recomposer(model, optimizer, total_steps=run.steps) if recomposes else None
    return training.fine_tune(
        model,
        images,
        preprocess,
        optimizer,
        recipe,
        seed=run.seed,
        before_step=recomposer.step if recomposer else None,
    )


def _accuracy(model: nn.Module, images: Images, preprocess: nn.Module) -> float:
    answers = training.run(model, images, preprocess).argmax(1)
    return (answers == images.labels).double().mean().item()
