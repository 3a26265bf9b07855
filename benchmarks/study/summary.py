"""From runs to a table, kept figures and pictures."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.record import keep
from benchmarks.study import pictures
from benchmarks.study.methods import METHODS
from benchmarks.study.runs import LOSSES_OF
from benchmarks.study.schedule import FOLDER, Record, Records
from benchmarks.study.tasks import TASKS

WINDOW = 4
"""Kept losses, each a mean of some steps, over whose mean a run's loss is read."""
Curve = list[float]
Row = dict[str, Any]


def show(tasks: Mapping[str, Records], console: Console) -> None:
    """Print a table of each task that was run; keep figures and pictures."""
    found: dict[str, Any] = {}
    for task, records in tasks.items():
        runs = {name: runs for name in METHODS if (runs := records.chosen(name))}
        if not runs:
            continue
        rows = rows_of(runs)
        for row in rows:
            row["rate_at_edge"] = records.is_at_an_end(row["method"])
        found[task] = {"title": TASKS[task].title, "steps": records.steps, "rows": rows}
        console.print(_table(TASKS[task].title, rows))
        curves = {name: mean_curve(each) for name, each in runs.items()}
        pictures.losses(curves, LOSSES_OF, FOLDER / f"{task}-loss.svg")
        pictures.accuracy(rows, FOLDER / f"{task}-accuracy.svg")
        for name, each in runs.items():
            told = next((run for run in each if run.get("switches")), None)
            if told is not None and not METHODS[name].control:
                path = FOLDER / f"{task}-{name}-directions.svg"
                pictures.directions(told["switches"], records.steps, path)
    if found:
        found["means"] = means({task: it["rows"] for task, it in found.items()})
        console.print(_means_table(found["means"]))
        keep("study", found)


def rows_of(runs: Mapping[str, Sequence[Record]]) -> list[Row]:
    """One row a method: mean and standard deviation of the test accuracy over the seeds."""
    goal = mean_curve(runs["lora"])[-1] if "lora" in runs else None
    return [
        {**_row(name, each), "steps_to_lora": _share(mean_curve(each), goal)}
        for name, each in runs.items()
    ]


def _row(method: str, runs: Sequence[Record]) -> Row:
    accuracies = [run["test"] for run in runs]
    return {
        "method": method,
        "rate": runs[0]["rate"],
        "weights": runs[0]["trainable"] - runs[0]["head"],
        "test_mean": statistics.mean(accuracies),
        "test_std": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "seeds": len(accuracies),
        "last_loss": mean_curve(runs)[-1],
    }


def _share(curve: Curve, goal: float | None) -> float | None:
    """Share of the steps after which a curve is at ``goal`` and below; None if it never is."""
    there = next((i for i, loss in enumerate(curve) if goal is not None and loss <= goal), None)
    return None if there is None else round((there + 1) / len(curve), 3)


def mean_curve(runs: Sequence[Record]) -> Curve:
    """The mean over the runs of their losses, each the mean of the last few."""
    means = [
        statistics.mean(values) for values in zip(*(run["losses"] for run in runs), strict=True)
    ]
    return [statistics.mean(means[max(0, i - WINDOW + 1) : i + 1]) for i in range(len(means))]


def means(tables: Mapping[str, Sequence[Row]]) -> list[Row]:
    """For each method that every task has: mean accuracy over the tasks, and the same less LoRA's.

    The spread is that of a mean of independent means: the root of the sum of their squared standard errors,
    divided by the number of tasks.
    """
    by_task = [{row["method"]: row for row in rows} for rows in tables.values()]
    found = []
    for method in METHODS:
        rows = [table[method] for table in by_task if method in table]
        if len(rows) < len(by_task) or any(row["test_std"] is None for row in rows):
            continue
        errors = [row["test_std"] ** 2 / row["seeds"] for row in rows]
        to_lora = [t[method]["test_mean"] - t["lora"]["test_mean"] for t in by_task if "lora" in t]
        found.append(
            {
                "method": method,
                "test_mean": statistics.mean(row["test_mean"] for row in rows),
                "standard_error": sum(errors) ** 0.5 / len(rows),
                "to_lora": statistics.mean(to_lora) if to_lora else None,
            }
        )
    return found


def _table(title: str, rows: Sequence[Row]) -> Table:
    made = Table(
        "method",
        "adapter weights",
        "rate",
        "test accuracy",
        "last loss",
        "steps to LoRA's",
        title=title,
    )
    for row in rows:
        spread = "" if row["test_std"] is None else f" ± {100 * row['test_std']:.2f}"
        share = "never" if row["steps_to_lora"] is None else f"{row['steps_to_lora']:.0%}"
        made.add_row(
            METHODS[row["method"]].title,
            f"{row['weights']:,}",
            f"{row['rate']:g}{' (edge)' if row['rate_at_edge'] else ''}",
            f"{100 * row['test_mean']:.2f}{spread}",
            f"{row['last_loss']:.3f}",
            share,
        )
    return made


def _means_table(rows: Sequence[Row]) -> Table:
    made = Table("method", "mean accuracy", "standard error", "to LoRA", title="All tasks")
    for row in rows:
        made.add_row(
            METHODS[row["method"]].title,
            f"{100 * row['test_mean']:.2f}",
            f"{100 * row['standard_error']:.2f}",
            f"{100 * row['to_lora']:+.2f}",
        )
    return made
