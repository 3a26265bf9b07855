"""The study, in three steps that may happen on different machines.

    python -m benchmarks.study prepare --sources FOLDER   # packages (see benchmarks/study/sources.py) -> tensors
    python -m benchmarks.study run --device cuda --workers 14 --tasks fashion r8
    python -m benchmarks.study show                       # table, pictures and figures of what was run

Each method's learning rate is chosen on the validation examples: the best two with seed 0, from a grid that grows until
the best lies inside it, and the better one of them over all seeds. The table shows the test examples with that rate.
Every run is kept as it ends; started again, the study goes on where it stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.study import summary
from benchmarks.study.methods import METHODS
from benchmarks.study.schedule import Records, Study
from benchmarks.study.tasks import TASKS

MATERIAL = Path(".cache/study")


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepare, run or show."""
    given = _parse(arguments)
    if given.step == "prepare":
        _prepare(given.sources, given.material, given.tasks, getattr(torch, given.weights))
    elif given.step == "run":
        _run(given)
    else:
        summary.show({task: _records(task, given.steps) for task in given.tasks}, Console())


def _prepare(sources: Path, material: Path, tasks: Sequence[str], dtype: torch.dtype) -> None:
    material.mkdir(parents=True, exist_ok=True)
    for backbone in {TASKS[task].backbone for task in tasks}:
        backbone.prepare(sources, material, dtype)
    for task in tasks:
        TASKS[task].load(sources).write(material / f"{task}.safetensors")


def _run(given: argparse.Namespace) -> None:
    study = Study(
        [_records(task, given.steps) for task in given.tasks], given.methods, given.material,
        given.device, given.seeds, given.workers, given.seconds, given.replay,
    )  # fmt: skip
    console = Console(stderr=True)
    for found in study.run():
        console.print(
            f"{found['task']} {found['method']} {found['rate']:g} seed {found['seed']}: validation "
            f"{found['validation']:.4f}, test {found['test']:.4f}, {found['seconds']} s"
        )
    for run, error in study.failures.items():
        console.print(f"failed: {run}: {type(error).__name__}: {error}")


def _records(task: str, steps: int | None) -> Records:
    return Records(task, steps or TASKS[task].steps)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    text = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m benchmarks.study", None, __doc__, formatter_class=text
    )
    parser.add_argument("step", choices=("prepare", "run", "show"))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument(
        "--material", type=Path, default=MATERIAL, help="folder of prepared material"
    )
    parser.add_argument("--sources", type=Path, default=Path("."), help="folder of packages")
    parser.add_argument("--weights", choices=("float32", "float16"), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="instead of each task's own number")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="start nothing after this"
    )
    parser.add_argument(
        "--no-replay",
        dest="replay",
        action="store_false",
        help="launch every kernel of every step anew",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
