"""Depth selections: which layers of a model a policy means. A pure parser."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction

from policies.errors import PolicyError, nearest

EXAMPLES = "all, 3, 0-5, first 2, last 4, last 50%, last 1/3, every 2"
_WORDS = ("all", "first", "last", "every")
_COUNT = r"[1-9]\d{0,3}"
_TERM = re.compile(
    rf"(?P<end>first|last) (?P<amount>{_COUNT}(?:%|/{_COUNT})?)"
    rf"|every (?P<step>{_COUNT})"
    r"|(?P<start>\d{1,4})(?:-(?P<stop>\d{1,4}))?",
    re.ASCII,
)

Layers = Callable[[int], frozenset[int]]


def parse(text: str | int) -> Layers | None:
    """Parse a depth selection, or several joined by commas.

    Args:
        text: ``all``, ``3``, ``0-5`` (both ends included), ``first 2``, ``last 4``, ``last 50%``,
            ``last 1/3`` (a share is rounded up), ``every 2`` (0, 2, 4, ...).

    Returns:
        A function from the model's depth to the selected layers, never more than there are, or None
        for ``all``, which also takes projections outside any layer.

    Raises:
        PolicyError: If the text is none of these; it suggests the nearest word.
    """
    parts = [_tidy(part) for part in str(text).split(",")]
    if parts == ["all"]:
        return None
    terms = [_term(part) for part in parts]
    if None in terms:
        raise _not_understood(str(text), parts[terms.index(None)])
    return lambda depth: frozenset(
        layer for term in terms if term for layer in term(depth) if 0 <= layer < depth
    )


def _tidy(part: str) -> str:
    """One space between words, none around signs: ``Last  50 %`` is ``last 50%``."""
    return re.sub(r"\s*([-/%])\s*", r"\1", " ".join(part.lower().split()))


def _term(part: str) -> Callable[[int], range] | None:
    """The layers of one part, which may reach beyond the model; None if it makes no sense."""
    found = _TERM.fullmatch(part)
    if found is None:
        return None
    if found["end"]:
        return _end(found["end"], found["amount"])
    if found["step"]:
        step = int(found["step"])
        return lambda depth: range(0, depth, step)
    start, stop = int(found["start"]), int(found["stop"] or found["start"])
    return (lambda depth: range(start, stop + 1)) if start <= stop else None


def _end(end: str, amount: str) -> Callable[[int], range] | None:
    share = Fraction(int(amount[:-1]), 100) if amount.endswith("%") else Fraction(amount)
    relative = not amount.isdigit()
    if relative and share > 1:
        return None

    def layers(depth: int) -> range:
        count = math.ceil(share * depth if relative else share)
        return range(count) if end == "first" else range(depth - count, depth)

    return layers


def _not_understood(whole: str, part: str) -> PolicyError:
    near = " ".join(nearest(word, _WORDS) or word for word in part.split())
    meant = f"did you mean {near!r}? " if near == "all" or _term(near) else ""
    return PolicyError(
        f"depth {whole!r} cannot be understood",
        why=f"{part!r} is no depth selection",
        remedy=f"{meant}write one of: {EXAMPLES}",
    )
