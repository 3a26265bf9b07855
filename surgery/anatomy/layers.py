"""Depth: numbering the blocks of a model from the paths at which its attention sites run."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

from torch import fx

from surgery.anatomy.graph import Graph, module_path

_INDEX = re.compile(r"(?<![^.])\d+(?![^.])")


class Blocks:
    """Block number of any module path.

    The index that counts blocks is the last numeric component that varies among sites of one
    kind: ``decoder.block.3.layer.0.SelfAttention`` sits in block ``decoder.block.3``, because
    ``layer.0`` is the same for every self-attention. Heads, experts and branches in a list vary, too,
    and none is computed from another: they lie side by side, and ``blocks.2.heads.1`` sits in
    block ``blocks.2``.

    Args:
        graph: The captured graph.
        sites: A node of each attention site.
        others: A node of each other computation. Two or more of a kind make blocks where no
            site's block holds them.
    """

    def __init__(self, graph: Graph, sites: Iterable[fx.Node], others: Iterable[fx.Node]) -> None:
        prefixes = dict.fromkeys((*_prefixes(graph, sites), *_prefixes(graph, others, 2)))
        self._number: dict[str, int] = {}
        for prefix in prefixes:
            if self._inside(prefix) is None:
                self._number[prefix] = len(self._number)

    def __len__(self) -> int:
        return len(self._number)

    def __call__(self, path: str) -> int | None:
        """Number of the block that ``path`` lies in, or None."""
        prefix = self._inside(path)
        return None if prefix is None else self._number[prefix]

    def _inside(self, path: str) -> str | None:
        parts = path.split(".")
        candidates = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
        return next((c for c in candidates if c in self._number), None)


def _prefixes(graph: Graph, nodes: Iterable[fx.Node], minimum: int = 1) -> list[str]:
    """The block that each node lies in, for families of at least ``minimum`` paths."""
    families: dict[str, dict[str, fx.Node]] = defaultdict(dict)
    ordered: dict[str, str] = {}
    for node in nodes:
        path = module_path(node)
        ordered[path] = _INDEX.sub("#", path)
        # Only first runs are compared: in a second one each head follows all heads of the first.
        families[ordered[path]].setdefault(path, node)
    lengths = {
        kind: _block_length(graph, family)
        for kind, family in families.items()
        if len(family) >= minimum
    }
    prefixes = (".".join(p.split(".")[: lengths.get(kind, 0)]) for p, kind in ordered.items())
    return [prefix for prefix in prefixes if prefix]


def _block_length(graph: Graph, family: dict[str, fx.Node]) -> int:
    """How many components of these paths name a block; none if no index counts blocks."""
    rows = [tuple(path.split(".")) for path in family]
    numeric = [i for i, part in enumerate(rows[0]) if part.isdigit()]
    varying = [i for i in numeric if len({row[i] for row in rows}) > 1]
    if not varying:
        return numeric[0] + 1 if numeric else 0
    histories = graph.histories(list(family.values()))
    behind = [histories[node] for node in family.values()]
    beside = [i for i in varying if _lie_side_by_side(i, rows, behind)]
    counting = [i for i in varying if i not in beside]
    if not counting:
        counting = [i for i in numeric if i < beside[0]][:1]
    return counting[-1] + 1 if counting else 0


def _lie_side_by_side(index: int, rows: list[tuple[str, ...]], behind: list[int]) -> bool:
    """Whether an index tells siblings apart of which none is computed from another."""
    within: dict[tuple[str, ...], int] = defaultdict(int)
    for number, row in enumerate(rows):
        within[row[:index]] |= 1 << number
        within[row[: index + 1]] |= 1 << number
    siblings = [within[row[:index]] & ~within[row[: index + 1]] for row in rows]
    return any(siblings) and not any(b & s for b, s in zip(behind, siblings, strict=True))
