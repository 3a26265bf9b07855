"""The study: ``python -m benchmarks.study [--data FOLDER] [--seeds 3] [--methods lora symlora]``.

DINOv2-S/14 learns Fashion-MNIST from 1,000 images at 56 px. Each method's learning rate is chosen on the
validation images with seed 0; the table shows the test images with that rate over all seeds. Every run is
kept as it ends; started again, the study goes on where it stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from benchmarks.record import keep
from benchmarks.study import fashion, summary
from benchmarks.study.methods import METHODS
from benchmarks.study.runs import FOLDER, Run, perform
from examples.digits import Split

TRAIN, VALIDATION, TEST = 1000, 500, 1000


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, print the table, keep figures and pictures."""
    options = _parse(arguments)
    images = fashion.load(options.data, TRAIN, VALIDATION, TEST)
    records: summary.Records = {}
    total = sum(len(METHODS[name].rates) + options.seeds - 1 for name in options.methods)
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("Study", total=total)
        for name in options.methods:
            progress.update(task, description=name)
            rate = _best_rate(name, options.steps, images)
            progress.advance(task, len(METHODS[name].rates))
            records[name] = []
            for seed in range(options.seeds):
                records[name].append(perform(Run(name, rate, seed, options.steps), images))
                progress.advance(task, seed > 0)
    found = summary.with_steps_to_lora(summary.rows(records), records)
    Console().print(summary.table(found))
    sizes = {"train": TRAIN, "validation": VALIDATION, "test": TEST, "steps": options.steps}
    keep("study", {"task": "Fashion-MNIST, DINOv2-S/14, 56 px", **sizes, "rows": found})
    summary.draw(found, records, FOLDER)


def _best_rate(name: str, steps: int, images: Split) -> float:
    """The rate whose run with seed 0 reads the most validation images; of equals the smaller."""
    rates = METHODS[name].rates
    return max(rates, key=lambda rate: perform(Run(name, rate, 0, steps), images)["validation"])


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__)
    parser.add_argument("--data", type=Path, default=fashion.FOLDER, metavar="FOLDER")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
