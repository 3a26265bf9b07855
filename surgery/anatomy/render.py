"""An anatomy as a table that a person understands, and as a stable dictionary; any table as plain text."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleRenderable, Group, JustifyMethod, RichCast
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from surgery.anatomy.types import Anatomy, Projection, Rows

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
_SHOWN_RUNS = 3
_HOLDS = {
    "any": "",
    "integers": " (as these integer inputs run it)",
    "all": " (as these inputs run it)",
}


def as_table(anatomy: Anatomy) -> Group:
    """A rich renderable: one line for each kind of projection, repeated layers folded into a range."""
    table = Table(title=_title(anatomy), title_justify="left", pad_edge=False)
    parts = any(p.parts for p in anatomy.projections)
    headings = ("role", "weight", "rows", "in → out", "read as", "layers")
    for heading in (*headings, "part") if parts else headings:
        side: JustifyMethod = "right" if heading == "in → out" else "left"
        table.add_column(heading, justify=side, overflow="fold")
    for family in _families(anatomy.projections):
        part = (", ".join(family[0].parts),) if parts else ()
        table.add_row(*_line(family), *part)
    missing = [
        Text(f"not placed: {u.what} at {u.where or 'the root'}: {u.why}", style="yellow")
        for u in anatomy.unplaced
    ]
    return Group(table, *missing)


def as_text(thing: ConsoleRenderable | RichCast, width: int = 118) -> str:
    """What rich would draw, as plain text."""
    console = Console(width=width, no_color=True)
    with console.capture() as captured:
        console.print(thing)
    return "\n".join(line.rstrip() for line in captured.get().rstrip().splitlines())


def as_dict(anatomy: Anatomy) -> dict[str, Any]:
    """The anatomy as plain lists, strings and numbers; the keys are stable.

    ``{"model", "depth", "inputs", "values", "embeddings", "sites": [{"id", "kind", "layer", "module", "calls",
    "notes", "projections": [...]}], "feed_forward": [...], "others": [...], "unplaced": [...]}``;
    a projection is ``{"role", "module", "parameter", "rows": [[start, stop, step], ...],
    "in_features", "out_features", "weight_out_features", "layout", "access", "layer", "calls",
    "tied_to", "bias", "reaches_output", "module_type", "parts"}``.
    """
    plain = _plain(asdict(anatomy))
    assert isinstance(plain, dict)
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, str) else value


def _title(anatomy: Anatomy) -> str:
    name = anatomy.model.rpartition(".")[2]
    return (
        f"{name}: {_count(len(anatomy.sites), 'attention site')}, "
        f"{_count(len(anatomy.feed_forward), 'feed-forward block')}, "
        f"{_count(anatomy.depth, 'layer')}{_HOLDS[anatomy.values]}"
    )


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _families(projections: Iterable[Projection]) -> list[list[Projection]]:
    """Projections that differ in their layer alone."""
    families: dict[object, list[Projection]] = defaultdict(list)
    for p in projections:
        template = _NUMBER.sub("*", p.weight_name)
        alike = (p.rows, p.in_features, p.access, p.calls, p.parts)
        families[p.role, template, alike].append(p)
    return list(families.values())


def _line(family: list[Projection]) -> tuple[str, ...]:
    first = family[0]
    name = first.weight_name if len(family) == 1 else _NUMBER.sub("*", first.weight_name)
    rows = "all" if first.whole else runs(first.rows)
    access = str(first.access) + (f" ×{first.calls}" if first.calls > 1 else "")
    shape = f"{first.in_features} → {first.out_features}"
    return str(first.role), name, rows, shape, access, ranges([p.layer for p in family])


def runs(rows: Rows) -> str:
    """The first runs as slices: ((0, 8, 1), (1, 48, 3)) -> "0:8, 1:48:3"."""
    shown = [f"{a}:{b}" if step == 1 else f"{a}:{b}:{step}" for a, b, step in rows[:_SHOWN_RUNS]]
    rest = len(rows) - _SHOWN_RUNS
    return ", ".join(shown) + (f", … {rest} more" if rest > 0 else "")


def ranges(layers: Sequence[int | None]) -> str:
    """Layer numbers as a person writes them: [0, 1, 2, 5] -> "0-2, 5"."""
    known = sorted({layer for layer in layers if layer is not None})
    spans: list[list[int]] = []
    for layer in known:
        if spans and spans[-1][1] == layer - 1:
            spans[-1][1] = layer
        else:
            spans.append([layer, layer])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
