"""Read and verify the whole zoo.

python -m benchmarks.zoo --zoo timm|transformers [--only GLOB] [--limit N] [--resume] [--families]

One JSON line a model goes to ``.cache/zoo/<zoo>.jsonl`` as the sweep runs; ``--resume`` goes on after the
last, ``--retry`` examines again what is not proved. At the end: a table, and
``benchmarks/results/zoo_<zoo>.json``.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.record import keep
from benchmarks.zoo.examine import Zoo
from benchmarks.zoo.libraries import LIBRARIES, library
from benchmarks.zoo.pool import Worker, sweep
from benchmarks.zoo.record import NONE, PROVED, Record
from benchmarks.zoo.report import figures, misses, summary

_LINES = Path(".cache") / "zoo"


def main() -> None:
    """Sweep, print, keep."""
    asked = _arguments()
    zoo, lines = library(asked.zoo), _LINES / f"{asked.zoo}.jsonl"
    known = load(lines) if asked.resume or asked.retry or asked.table else {}
    names = [] if asked.table else choose(zoo, asked, known)
    worker = Worker(asked.zoo, asked.seconds, asked.gigabytes)
    run(worker, zoo, names, lines, known)
    order = {name: i for i, name in enumerate(zoo.names())}
    records = sorted(known.values(), key=lambda r: order.get(r.model, len(order)))
    console = Console()
    console.print(misses(records), summary(records))
    if not asked.only and not asked.limit:
        console.print(f"kept in {keep(f'zoo_{asked.zoo}', figures(records))}")


def choose(zoo: Zoo, asked: argparse.Namespace, known: dict[str, Record]) -> list[str]:
    """The names to examine in this run."""
    names = [n for n in zoo.names() if fnmatch.fnmatch(n, asked.only or "*")]
    if asked.families:
        firsts: dict[str, str] = {}
        for name in names:
            firsts.setdefault(zoo.family(name), name)
        names = list(firsts.values())
    done = {n for n, r in known.items() if not asked.retry or r.status in (PROVED, NONE)}
    return [n for n in names if n not in done][: asked.limit]


def run(worker: Worker, zoo: Zoo, names: list[str], lines: Path, known: dict[str, Record]) -> None:
    """Examine ``names``, writing each record down before the next model starts."""
    lines.parent.mkdir(parents=True, exist_ok=True)
    with lines.open("a" if known else "w", encoding="utf-8") as file, _progress() as progress:
        task = progress.add_task("", total=len(names))
        for record in sweep(worker, _announced(names, progress, task)):
            record.family = record.family or zoo.family(record.model)
            known[record.model] = record
            file.write(json.dumps(record.to_dict()) + "\n")
            file.flush()
            progress.advance(task)


def load(lines: Path) -> dict[str, Record]:
    """What earlier runs wrote; of several lines for one model the last counts."""
    if not lines.exists():
        return {}
    rows = (json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines() if line)
    return {row["model"]: Record.from_dict(row) for row in rows}


def _announced(names: list[str], progress: Progress, task: object) -> Iterable[str]:
    for name in names:
        progress.update(task, description=name)  # type: ignore[arg-type]
        yield name


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description:<40}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="read and verify the whole zoo")
    parser.add_argument("--zoo", choices=sorted(LIBRARIES), required=True)
    parser.add_argument("--only", metavar="GLOB", help="models whose name matches")
    parser.add_argument("--limit", type=int, help="at most so many models")
    parser.add_argument("--families", action="store_true", help="one model of each family")
    parser.add_argument("--resume", action="store_true", help="go on after the last line written")
    parser.add_argument("--retry", action="store_true", help="as --resume, and again what failed")
    parser.add_argument("--table", action="store_true", help="only print and keep what is known")
    parser.add_argument("--seconds", type=float, default=120, help="time limit of one model")
    parser.add_argument("--gigabytes", type=float, default=8, help="memory limit of the worker")
    return parser.parse_args()


if __name__ == "__main__":
    main()
