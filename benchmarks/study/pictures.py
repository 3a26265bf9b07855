"""Pictures of a task: loss against steps, accuracy against trained weights, directions over the steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

from matplotlib import pyplot

from benchmarks.study.methods import METHODS, RANK
from benchmarks.study.runs import Switches
from surgery.runs.charts import stays

COLUMNS = 6


def accuracy(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Test accuracy with its standard deviation against trained weights without the head."""
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for row in rows:
        if METHODS[row["method"]].control:
            continue
        weights, mean = max(row["weights"], 1_000), 100 * row["test_mean"]
        axes.errorbar(weights, mean, yerr=100 * (row["test_std"] or 0), fmt="o", capsize=3)
        title = METHODS[row["method"]].title
        axes.annotate(title, (weights, mean), xytext=(5, 4), textcoords="offset points", size=7)
    axes.set(xscale="log", xlabel="trained weights without the head", ylabel="test accuracy, %")
    _write(figure, path)


def losses(curves: Mapping[str, Sequence[float]], steps: int, path: Path) -> None:
    """Mean training loss; each value of a curve stands for ``steps`` steps."""
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for method, curve in curves.items():
        if not METHODS[method].control:
            axes.plot(
                range(steps, steps * len(curve) + 1, steps),
                curve,
                label=METHODS[method].title,
                linewidth=1,
            )
    axes.set(yscale="log", xlabel="step", ylabel="training loss, mean over seeds and 20 steps")
    axes.legend(fontsize=6)
    _write(figure, path)


def directions(switches: Switches, steps: int, path: Path) -> None:
    """Which singular directions each adapter trained when: a bar a stay."""
    rows = math.ceil(len(switches) / COLUMNS)
    figure, panels = pyplot.subplots(
        rows, COLUMNS, figsize=(9.6, 1.1 * rows), layout="constrained",
        sharex=True, sharey=True, squeeze=False,
    )  # fmt: skip
    for axes, (adapter, own) in zip(panels.flat, switches.items(), strict=False):
        for direction, start, end in stays({"rank": RANK, "switches": own}, steps):
            axes.broken_barh([(start, end - start)], (direction + 0.6, 0.8))
        axes.set_title(_layer_and_slot(adapter), fontsize=7)
    for axes in panels.flat[len(switches) :]:
        axes.set_visible(False)
    panels[0, 0].invert_yaxis()
    figure.supxlabel("step", fontsize=7)
    figure.supylabel("singular direction, from the largest", fontsize=7)
    _write(figure, path)


def _layer_and_slot(adapter: str) -> str:
    """``3 query`` of ``encoder.layer.3.attention.query.adapters.weight.query``."""
    parts = adapter.split(".")
    return " ".join([*filter(str.isdecimal, parts), parts[-1]])


def _write(figure: Any, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
