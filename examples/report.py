"""The report: one HTML file that needs nothing else."""

from __future__ import annotations

from pathlib import Path

import jinja2

from examples import charts
from examples.assets import replacing
from examples.results import Results

TEMPLATE = Path(__file__).with_name("report.html.jinja")


def render(results: Results) -> str:
    """The whole page, styles and pictures included."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"size": size, "count": count, "compact": compact}
    environment.globals |= {"curve": charts.curve, "interval": interval}
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(r=results)


def write(results: Results, path: Path) -> None:
    """Render to a file, atomically."""
    page = render(results)
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def interval(correct: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion."""
    z2 = 1.96**2
    share = correct / total
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = (z2 * (share * (1 - share) / total + z2 / (4 * total**2))) ** 0.5 / (1 + z2 / total)
    return centre - half, centre + half


def size(number: float) -> str:
    """Bytes for people: ``88.1 MB``."""
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} GB"


def count(number: int) -> str:
    """``36,960``."""
    return f"{number:,}"


def compact(number: float) -> str:
    """A small number in powers of ten: ``3.1e-7`` becomes ``3.1 × 10⁻⁷``."""
    if number == 0:
        return "0"
    mantissa, _, exponent = f"{number:.1e}".partition("e")
    superscript = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{mantissa} × 10{superscript}"
