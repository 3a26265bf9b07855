"""Depth: numbering the blocks of a model from the paths at which its attention sites run."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

_INDEX = re.compile(r"(?<![^.])\d+(?![^.])")


class Blocks:
    """Block number of any module path.

    The index that counts blocks is the last numeric component that varies among sites of one
    kind: ``decoder.block.3.layer.0.SelfAttention`` sits in block ``decoder.block.3``, because
    ``layer.0`` is the same for every self-attention.
    """

    def __init__(self, site_modules: Iterable[str], other_modules: Iterable[str]) -> None:
        prefixes = list(dict.fromkeys((*_prefixes(site_modules), *_prefixes(other_modules, 2))))
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


def _prefixes(paths: Iterable[str], minimum: int = 1) -> list[str]:
    """The block that each path lies in, for families of at least ``minimum`` paths."""
    families: dict[str, list[str]] = defaultdict(list)
    ordered = list(dict.fromkeys(paths))
    for path in ordered:
        families[_INDEX.sub("#", path)].append(path)
    return [
        prefix
        for path in ordered
        if len(family := families[_INDEX.sub("#", path)]) >= minimum
        if (prefix := _block_prefix(path, family))
    ]


def _block_prefix(path: str, family: list[str]) -> str:
    parts = path.split(".")
    rows = [other.split(".") for other in family]
    numeric = [i for i, part in enumerate(parts) if part.isdigit()]
    varying = [i for i in numeric if len({row[i] for row in rows}) > 1]
    if not numeric:
        return ""
    last = varying[-1] if varying else numeric[0]
    return ".".join(parts[: last + 1])
