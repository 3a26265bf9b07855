"""The demo's learning rates, chosen on its validation images; the test images are not looked at.

    python -m benchmarks.rates [--seeds 2]

Every adapter of the demo is trained as the demo trains it, at each rate and seed.
"""

from __future__ import annotations

import argparse
import statistics
from itertools import product
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import surgery
from benchmarks.record import keep
from examples import demo, digits, dinov2, training
from examples.digits import Split
from examples.stages import Stages
from examples.training import Recipe

RATES = (1e-3, 3e-3, 6e-3)


def main() -> None:
    """Run the sweep, print the table, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=150)
    options = parser.parse_args()
    images = digits.load()
    grid = list(product(demo.NAMES, RATES))
    table = Table("adapter", "rate", "validation accuracy", "mean")
    figures = []
    for adapter, rate in track(grid, "Sweep", console=Console(stderr=True)):
        found = [accuracy(images, adapter, rate, options.steps, s) for s in range(options.seeds)]
        mean = statistics.mean(found)
        figures.append({"adapter": adapter, "rate": rate, "accuracies": found, "mean": mean})
        table.add_row(adapter, f"{rate:g}", ", ".join(f"{a:.3f}" for a in found), f"{mean:.4f}")
    Console().print(table)
    keep("rates", {"steps": options.steps, "images": len(images.train), "runs": figures})


def accuracy(images: Split, adapter: str, rate: float, steps: int, seed: int) -> float:
    """Share of the validation images that one training run gets right."""
    torch.manual_seed(seed)
    model = dinov2.build(digits.CLASSES, image_size=demo.IMAGE_SIZE)
    preprocess = digits.Preprocess(model, demo.IMAGE_SIZE)
    surgery.apply(model, demo.POLICY, adapter=adapter, rank=8, seed=seed)
    with Stages(Console(quiet=True)) as stages:
        demo.adapt(
            model,
            images.train,
            preprocess,
            Recipe(rate, steps=steps),
            demo.Options(adapter, 8, steps, seed, Path()),
            stages,
        )
    answers = training.run(model, images.validation, preprocess).argmax(1)
    return (answers == images.validation.labels).double().mean().item()


if __name__ == "__main__":
    main()
