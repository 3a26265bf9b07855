"""Figures of a run as inline SVG: transparent, real text, colours that follow the page's theme."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK = "#010203"
"""Stands for the page's text colour, and becomes ``currentColor``."""
ACCENT, SECOND = "#d1573a", "#4d7fb0"
PANELS = 24
"""Small figures beside each other, at most."""

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.15,
    "lines.linewidth": 1.4,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK
    ),
    "grid.color": INK,
}
Layers = dict[str, dict[str, Any]]


@contextmanager
def _style(name: str) -> Iterator[None]:
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        yield


def _svg(figure: Figure, label: str) -> Markup:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    opening = Markup('<svg role="img" aria-label="{}"').format(label)
    return Markup(text.replace("<svg", opening, 1))


def curves(curve: Sequence[dict[str, Any]], evaluations: Sequence[dict[str, Any]]) -> Markup:
    """Loss, accuracy (if there is one) and learning rate over the steps."""
    accuracy = [e for e in evaluations if "eval_accuracy" in e]
    with _style("curves"):
        figure = Figure(figsize=(9.6, 2.7), layout="constrained")
        axes = figure.subplots(1, 3 if accuracy else 2)
        _lines(axes[0], curve, "loss", "training", ACCENT)
        _lines(axes[0], evaluations, "eval_loss", "validation", SECOND, marker="o")
        axes[0].legend(frameon=False)
        axes[0].set_title("loss")
        if accuracy:
            _lines(axes[1], accuracy, "eval_accuracy", "validation", SECOND, marker="o")
            axes[1].set_title("accuracy")
            axes[1].set_ylim(0, 1.02)
        _lines(axes[-1], curve, "learning_rate", "", ACCENT)
        axes[-1].set_title("learning rate")
        for each in axes:
            _steps(each)
        return _svg(figure, "loss, accuracy and learning rate over the steps")


def _steps(axes: Axes) -> None:
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def _lines(
    axes: Axes, rows: Sequence[dict[str, Any]], key: str, label: str, colour: str, **style: Any
) -> None:
    points = [(row["step"], row[key]) for row in rows if key in row]
    axes.plot(*zip(*points, strict=True), color=colour, label=label, markersize=3, **style)


def updates(steps: Sequence[int], layers: Layers) -> Markup:
    """|W - W0| / |W0| over the steps, a panel a role, a line a layer."""
    roles = _by_role(layers)
    with _style("updates"):
        figure, panels = _panels(len(roles), height=2.4, columns=3)
        for axes, (role, members) in zip(panels, roles.items(), strict=True):
            for layer, colour in zip(members, _shades(len(members)), strict=True):
                relative = np.array(layer["update_norm"]) / max(layer["base_norm"], 1e-30)
                axes.plot(steps, relative, color=colour, label=_short(layer))
            axes.set_title(role)
            _steps(axes)
            axes.set_ylim(bottom=0)
            axes.legend(frameon=False, fontsize=7, ncols=math.ceil(len(members) / 6))
        return _svg(figure, "relative norm of each update over the steps")


def importance(steps: Sequence[int], layers: Layers) -> Markup:
    """Score of every pair (rows) over the steps, each adapter against its own largest."""
    scored = [layer for layer in layers.values() if layer["scores"]]
    rows = np.concatenate([_scaled(np.array(layer["scores"], float).T) for layer in scored])
    ranks = np.cumsum([0, *(layer["rank"] for layer in scored)])
    with _style("importance"):
        figure = Figure(
            figsize=(9.6, 1.2 + 0.09 * len(rows) + 0.08 * len(scored)), layout="constrained"
        )
        axes = figure.subplots()
        edges = [*steps, steps[-1] + 1] if len(steps) > 1 else [0, 1]
        mesh = axes.pcolormesh(
            edges, np.arange(len(rows) + 1), rows, norm=LogNorm(1e-4, 1), cmap="magma"
        )
        axes.set_yticks(
            (ranks[:-1] + ranks[1:]) / 2, [_short(layer, role=True) for layer in scored], fontsize=7
        )
        axes.hlines(ranks[1:-1], edges[0], edges[-1], color="white", linewidth=0.8)
        axes.invert_yaxis()
        axes.grid(False)
        _steps(axes)
        figure.colorbar(mesh, ax=axes, label="score / largest of the adapter", pad=0.01)
        return _svg(figure, "importance of every pair over the steps")


def _scaled(scores: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Against the largest, (r, steps); zero, where a score has just begun anew, is left blank."""
    relative = (scores / max(scores.max(initial=0.0), 1e-300)).clip(1e-4, 1)
    return np.where(scores > 0, relative, np.nan)


def directions(last_step: int, layers: Layers) -> Markup:
    """Which singular directions each adapter trained when: a bar a stay."""
    moved = [layer for layer in layers.values() if layer["switches"]][:PANELS]
    with _style("directions"):
        figure, panels = _panels(len(moved), height=1.7, columns=4)
        for axes, layer in zip(panels, moved, strict=True):
            for direction, start, end in stays(layer, last_step):
                axes.broken_barh(
                    [(start, max(end - start, 0.4))], (direction - 0.4, 0.8), color=ACCENT
                )
            axes.set_title(_short(layer, role=True), fontsize=8)
            axes.set_xlim(0, last_step)
            axes.invert_yaxis()
            axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        return _svg(figure, "singular directions that each adapter trained over the steps")


def stays(layer: dict[str, Any], last_step: int) -> list[tuple[int, int, int]]:
    """(direction, first step, last step) of every stay of a pair on a singular direction."""
    on = {pair: (pair, 0) for pair in range(layer["rank"])}
    unused, found = layer["rank"], []
    for step, pairs in layer["switches"]:
        for pair in pairs:
            direction, since = on[pair]
            found.append((direction, since, step))
            on[pair] = (unused, step)
            unused += 1
    return sorted(found + [(direction, since, last_step) for direction, since in on.values()])


def eigenvalues(layers: Layers) -> Markup:
    """The eigenvalues of each SymLoRA update at the end, a panel a role, a column a layer."""
    roles = _by_role({n: layer for n, layer in layers.items() if layer["eigenvalues"]})
    with _style("eigenvalues"):
        figure, panels = _panels(len(roles), height=2.4, columns=3)
        for axes, (role, members) in zip(panels, roles.items(), strict=True):
            for place, layer in enumerate(members):
                values = layer["eigenvalues"][-1]
                colours = [ACCENT if value > 0 else SECOND for value in values]
                axes.scatter([place] * len(values), values, c=colours, s=12)
            axes.axhline(0, color=INK, linewidth=0.6)
            axes.set_xticks(range(len(members)), [_short(layer) for layer in members], fontsize=7)
            axes.set_title(role)
        return _svg(figure, "eigenvalues of each SymLoRA update")


def drift(projections: Iterable[dict[str, Any]]) -> Markup:
    """What rounding cost each projection, relative to its weight and to what was learned."""
    rows = list(projections)
    with _style("drift"):
        figure = Figure(figsize=(9.6, 2.2), layout="constrained")
        axes = figure.subplots()
        for key, label, colour in (
            ("drift", "of the weight", SECOND),
            ("update_error", "of the update", ACCENT),
        ):
            axes.plot(
                range(len(rows)),
                [r[key] for r in rows],
                "o",
                label=label,
                color=colour,
                markersize=4,
            )
        axes.set_yscale("log")
        axes.set_xlabel("projection")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_title("rounding error of the fold")
        axes.legend(frameon=False)
        return _svg(figure, "rounding error of the fold, projection by projection")


def latency(rows: Sequence[dict[str, Any]]) -> Markup:
    """Median of each contender with the span of the middle 80 %."""
    with _style("latency"):
        figure = Figure(figsize=(9.6, 0.6 + 0.4 * len(rows)), layout="constrained")
        axes = figure.subplots()
        middle = np.array([row["median_ms"] for row in rows])
        span = [middle - [r["low_ms"] for r in rows], [r["high_ms"] for r in rows] - middle]
        axes.barh([r["name"] for r in rows], middle, xerr=span, color=SECOND, ecolor=INK, capsize=2)
        axes.invert_yaxis()
        axes.set_xlabel("ms a call")
        return _svg(figure, "latency of each contender")


def _panels(count: int, height: float, columns: int) -> tuple[Figure, list[Axes]]:
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(9.6 if count > 1 else 5.0, height * rows), layout="constrained")
    panels = list(np.atleast_1d(figure.subplots(rows, columns)).flat)
    for extra in panels[count:]:
        extra.remove()
    return figure, panels[:count]


def _by_role(layers: Layers) -> dict[str, list[dict[str, Any]]]:
    roles: dict[str, list[dict[str, Any]]] = {}
    for layer in layers.values():
        roles.setdefault(layer["role"], []).append(layer)
    return roles


def _shades(count: int) -> list[Any]:
    return list(mpl.colormaps["viridis"](np.linspace(0.1, 0.85, count)))


def _short(layer: dict[str, Any], *, role: bool = False) -> str:
    depth = "-" if layer["layer"] is None else str(layer["layer"])
    return f"{layer['role'].removeprefix('attention.')} {depth}" if role else depth
