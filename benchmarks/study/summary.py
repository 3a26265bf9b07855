"""From runs to a table and two pictures."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

from matplotlib import pyplot
from rich.table import Table

from benchmarks.study.methods import METHODS

Records = dict[str, list[dict[str, Any]]]
WINDOW = 10


def rows(records: Records) -> list[dict[str, Any]]:
    """One row a method: mean and standard deviation of the test accuracy over the seeds."""
    return [_row(method, runs) for method, runs in records.items()]


def _row(method: str, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    accuracies = [run["test"] for run in runs]
    return {
        "method": method,
        "rate": runs[0]["rate"],
        "weights": runs[0]["trainable"] - runs[0]["head"],
        "test_mean": statistics.mean(accuracies),
        "test_std": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "seeds": len(accuracies),
        "last_loss": statistics.mean(smoothed(run["losses"])[-1] for run in runs),
        "steps_to_lora": None,
    }


def with_steps_to_lora(found: list[dict[str, Any]], records: Records) -> list[dict[str, Any]]:
    """Add the share of the steps after which each method's mean loss was at LoRA's last one."""
    if "lora" not in records:
        return found
    goal = _mean_curve(records["lora"])[-1]
    for row in found:
        curve = _mean_curve(records[row["method"]])
        there = next((i for i, loss in enumerate(curve) if loss <= goal), None)
        row["steps_to_lora"] = None if there is None else round((there + 1) / len(curve), 3)
    return found


def smoothed(losses: Sequence[float]) -> list[float]:
    """Mean of the last ten values at each step."""
    return [statistics.mean(losses[max(0, i - WINDOW + 1) : i + 1]) for i in range(len(losses))]


def table(found: Sequence[dict[str, Any]]) -> Table:
    """For the terminal."""
    made = Table(
        "method", "adapter weights", "rate", "test accuracy", "last loss", "steps to LoRA's"
    )
    for row in found:
        spread = "" if row["test_std"] is None else f" ± {100 * row['test_std']:.2f}"
        share = "" if row["steps_to_lora"] is None else f"{row['steps_to_lora']:.0%}"
        made.add_row(
            METHODS[row["method"]].title,
            f"{row['weights']:,}",
            f"{row['rate']:g}",
            f"{100 * row['test_mean']:.2f}{spread}",
            f"{row['last_loss']:.3f}",
            share,
        )
    return made


def draw(found: Sequence[dict[str, Any]], records: Records, folder: Path) -> None:
    """``accuracy.svg``: accuracy against weights; ``loss.svg``: loss against steps."""
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for row in found:
        weights, mean = max(row["weights"], 1_000), 100 * row["test_mean"]
        axes.errorbar(weights, mean, yerr=100 * (row["test_std"] or 0), fmt="o", capsize=3)
        title = METHODS[row["method"]].title
        axes.annotate(title, (weights, mean), xytext=(5, 4), textcoords="offset points", size=7)
    axes.set(xscale="log", xlabel="trained weights without the head", ylabel="test accuracy, %")
    figure.savefig(folder / "accuracy.svg", metadata={"Date": None})
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for method, runs in records.items():
        axes.plot(_mean_curve(runs), label=METHODS[method].title, linewidth=1)
    axes.set(yscale="log", xlabel="step", ylabel="training loss, mean of ten steps and all seeds")
    axes.legend(fontsize=7)
    figure.savefig(folder / "loss.svg", metadata={"Date": None})


def _mean_curve(runs: Sequence[dict[str, Any]]) -> list[float]:
    curves = [smoothed(run["losses"]) for run in runs]
    return [statistics.mean(values) for values in zip(*curves, strict=True)]
