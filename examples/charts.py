"""Small charts as HTML: shapes stretch with the page, text keeps its size, colours follow the theme."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from statistics import fmean

from markupsafe import Markup
from PIL import Image
from torch import Tensor

WIDTH, HEIGHT = 1000.0, 300.0


def curve(values: Sequence[float], marks: Sequence[int] = (), *, window: int = 9) -> Markup:
    """A line chart of one value a step: every step thin, the moving average bold.

    Args:
        values: What to draw, from step 1.
        marks: Steps at which a vertical line stands.
        window: Width of the moving average.
    """
    ticks = _ticks(max(values))
    svg = Markup(
        '<svg viewBox="0 0 {w:.0f} {h:.0f}" preserveAspectRatio="none" role="img" '
        'aria-label="Training loss over {n} steps">{grid}{marks}'
        '<path class="raw" d="{raw}"/><path class="smooth" d="{smooth}"/></svg>'
    ).format(
        w=WIDTH,
        h=HEIGHT,
        n=len(values),
        grid=_lines("grid", [(0.0, _y(t, ticks[-1]), WIDTH, _y(t, ticks[-1])) for t in ticks]),
        marks=_lines("mark", [(x, 0.0, x, HEIGHT) for x in (_x(m, len(values)) for m in marks)]),
        raw=_path(values, ticks[-1]),
        smooth=_path(moving_average(values, window), ticks[-1]),
    )
    labels = Markup().join(
        Markup('<span style="bottom:{:.2f}%">{:g}</span>').format(100 * t / ticks[-1], t)
        for t in ticks
    )
    steps = Markup("<span>step 1</span><span>{}</span><span>{}</span>").format(
        (len(values) + 1) // 2, len(values)
    )
    return Markup(
        '<div class="curve"><div class="y">{}</div>{}<div class="x">{}</div></div>'
    ).format(labels, svg, steps)


def moving_average(values: Sequence[float], window: int) -> list[float]:
    """Mean of the ``window`` (odd) values around each step; narrower, and still centred, at the ends."""
    halves = (min(window // 2, i, len(values) - 1 - i) for i in range(len(values)))
    return [fmean(values[i - half : i + half + 1]) for i, half in enumerate(halves)]


def ink(pixels: Tensor) -> str:
    """A digit (28, 28) uint8 as a data URI: black ink on nothing, so that a theme can invert it."""
    image = Image.new("LA", (pixels.shape[1], pixels.shape[0]))
    image.putalpha(Image.fromarray(pixels.numpy()))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _ticks(largest: float) -> list[float]:
    """Round numbers from zero to at least ``largest``, four or five of them."""
    rough = max(largest, 1e-9) / 4
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough)
    return [step * i for i in range(math.ceil(largest / step - 1e-9) + 1)]


def _path(values: Sequence[float], top: float) -> str:
    points = (
        f"{_x(step, len(values)):.1f} {_y(value, top):.1f}" for step, value in enumerate(values, 1)
    )
    return "M" + "L".join(points)


def _lines(kind: str, ends: Sequence[tuple[float, float, float, float]]) -> Markup:
    line = Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>')
    return Markup().join(line.format(kind, *end) for end in ends)


def _x(step: int, steps: int) -> float:
    return WIDTH * (step - 1) / max(1, steps - 1)


def _y(value: float, top: float) -> float:
    return HEIGHT * (1 - value / top)
