"""The page of a run: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from surgery.errors import RunError
from surgery.runs.folder import RunFolder

TEMPLATE = Path(__file__).with_name("report.html.jinja")


@dataclass(frozen=True)
class Section:
    """One part of the page.

    Attributes:
        id: Anchor.
        title: Heading.
        figure: What is drawn, or nothing.
        text: What it shows, in a sentence or two.
    """

    id: str
    title: str
    figure: Markup
    text: str


def render(folder: RunFolder) -> str:
    """Draw whatever is in a run folder.

    Raises:
        RunError: If it holds no finished run, or matplotlib is not installed.
    """
    metrics = folder.read(folder.metrics)
    if metrics is None:
        raise RunError(
            "the folder holds no finished run",
            where=str(folder.metrics),
            why="there is no such file",
            remedy="surgery train CONFIG.yaml --resume goes on with a run that was stopped",
        )
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        name=folder.path.name,
        metrics=metrics,
        config=folder.config.read_text(encoding="utf-8"),
        labels=folder.read(folder.labels) or [],
        export=folder.read(folder.export),
        sections=list(_sections(folder, metrics)),
    )


def _sections(folder: RunFolder, metrics: dict[str, Any]) -> Iterator[Section]:
    try:
        from surgery.runs import charts
    except ImportError as error:
        raise RunError(
            "the report needs matplotlib",
            why="not installed",
            remedy="pip install 'model-surgery[train]'",
        ) from error
    figure = charts.curves(metrics["curve"], metrics["evaluations"])
    yield Section("curves", "Curves", figure, _kept(metrics))
    yield from _adapter_sections(folder.read(folder.layers), metrics["steps"])
    if fold := folder.read(folder.fold):
        text = f"The worst weight lost {fold['drift']:.1e} of its norm to rounding"
        seen = fold["function_drift"]
        text += "." if seen is None else f"; the outputs moved by {seen:.1e} of their largest."
        yield Section("fold", "Fold", charts.drift(fold["projections"]), text)
    if latency := folder.read(folder.latency):
        text = f"{latency['threads']} threads, {latency['calls']} calls each; bars are medians, "
        text += "whiskers the middle 80 %."
        yield Section("latency", "Latency", charts.latency(latency["rows"]), text)


def _adapter_sections(watched: dict[str, Any] | None, last: int) -> Iterator[Section]:
    from surgery.runs import charts

    if not watched or not watched["layers"]:
        return
    steps, layers = watched["steps"], watched["layers"]
    text = "Frobenius norm of W - W0 over that of W0, with all that was fused and subtracted."
    yield Section("updates", "Updates", charts.updates(steps, layers), text)
    if any(layer["scores"] for layer in layers.values()):
        text = (
            "A row a pair. At a switch the least important pairs of each adapter move on, and all "
        )
        text += "scores begin anew: blank."
        yield Section("importance", "Importance", charts.importance(steps, layers), text)
    switched = [layer for layer in layers.values() if layer["switches"]]
    if switched:
        text = "The singular directions of each weight, the largest on top, and when a pair stood on them."
        if len(switched) > charts.PANELS:
            text += f" The first {charts.PANELS} of {len(switched)} adapters."
        yield Section("directions", "Directions", charts.directions(last, layers), text)
    if any(layer["eigenvalues"] for layer in layers.values()):
        text = "Of each symmetric update at the end, while Q stays close to orthonormal."
        yield Section("eigenvalues", "Eigenvalues", charts.eigenvalues(layers), text)


def _kept(metrics: dict[str, Any]) -> str:
    early = metrics["steps"] < metrics["planned_steps"]
    text = f"{metrics['steps']} of {metrics['planned_steps']} steps" + (
        ", stopped early. " if early else ". "
    )
    return text + f"The adapter file holds the weights after step {metrics['kept_step']}."
