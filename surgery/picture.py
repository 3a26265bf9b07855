"""A model's anatomy as one HTML page that needs nothing else."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import jinja2

from policies.roles import Role
from surgery.anatomy.render import runs
from surgery.anatomy.types import Anatomy, Projection
from surgery.atomic import replace_file
from surgery.operations.plan import Operation, Plan

_TEMPLATE = Path(__file__).with_name("picture.html.jinja")
_NUMBERED = re.compile(r"(?:^|\.)\d+(?=\.|$)")


@dataclass(frozen=True)
class Segment:
    """One role's share of a weight, as the page draws it.

    Attributes:
        role: Its role.
        share: Its rows over those of the weight.
        title: What hovering tells.
        rank: Rank of the adapter that the plan puts there, or None.
    """

    role: Role
    share: float
    title: str
    rank: int | None


@dataclass(frozen=True)
class Bar:
    """One weight: its name, its size relative to the largest, and its segments in row order."""

    name: str
    size: float
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Tower:
    """Blocks that share a path (``vision_model.encoder.layers``), first to last, and the parts they lie in."""

    name: str
    parts: tuple[str, ...]
    blocks: tuple[tuple[str, tuple[Bar, ...]], ...]


def picture(anatomy: Anatomy, plan: Plan | None = None) -> str:
    """Draw an anatomy: towers, blocks, every weight split by role; what a plan adapts is in colour.

    Args:
        anatomy: From ``surgery.read``.
        plan: From ``surgery.plan`` on the same model.

    Returns:
        A whole HTML page; styles are inside, and it runs no script.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    towers = _towers(anatomy, plan)
    roles = dict.fromkeys(p.role for p in anatomy.projections)
    return template.render(anatomy=anatomy, plan=plan, towers=towers, roles=list(roles))


def save_picture(path: str | os.PathLike[str], anatomy: Anatomy, plan: Plan | None = None) -> Path:
    """Write :func:`picture` to a file, whole or not at all; the path."""
    target = Path(path)
    replace_file(target, picture(anatomy, plan).encode())
    return target


def _towers(anatomy: Anatomy, plan: Plan | None) -> list[Tower]:
    operations = {o.projection: o for o in plan.operations} if plan else {}
    largest = max((p.weight_out_features * p.in_features for p in anatomy.projections), default=1)
    blocks: dict[str, dict[str, dict[str, list[Projection]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for p in anatomy.projections:
        tower, block = _place(p)
        blocks[tower][block][p.weight_name].append(p)
    return [
        Tower(
            tower,
            _parts(p for weights in parts.values() for ps in weights.values() for p in ps),
            tuple(
                (block, tuple(_bar(n, ps, operations, largest) for n, ps in weights.items()))
                for block, weights in parts.items()
            ),
        )
        for tower, parts in blocks.items()
    ]


def _parts(projections: Iterable[Projection]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part for p in projections for part in p.parts))


def _place(projection: Projection) -> tuple[str, str]:
    """The tower and the block that a weight belongs to: its path up to the last number."""
    numbers = list(_NUMBERED.finditer(projection.module))
    if projection.layer is None or not numbers:
        return "", ""
    block = projection.module[: numbers[-1].end()]
    return projection.module[: numbers[0].start()], block


def _bar(
    name: str,
    projections: Iterable[Projection],
    operations: dict[Projection, Operation],
    largest: int,
) -> Bar:
    ordered = sorted(projections, key=lambda p: p.rows)
    first = ordered[0]
    # Areas would differ a thousandfold; their square roots can be seen side by side.
    size = (first.weight_out_features * first.in_features / largest) ** 0.5
    return Bar(name, size, tuple(_segment(p, operations.get(p)) for p in ordered))


def _segment(p: Projection, operation: Operation | None) -> Segment:
    rows = "all rows" if p.whole else f"rows {runs(p.rows)}"
    title = f"{p.role}: {p.weight_name}, {rows}, {p.in_features} → {p.out_features}"
    if p.calls > 1:
        title += f", used {p.calls} times"
    if operation is not None:
        adapter = operation.adapter
        title += f" · {adapter.kind}, rank {adapter.rank}, {operation.parameters:,} weights"
    rank = operation.adapter.rank if operation else None
    return Segment(p.role, p.out_features / p.weight_out_features, title, rank)
