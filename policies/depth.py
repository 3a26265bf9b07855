"""Depth selections: which layers of a model a policy means."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from policies.errors import PolicyError

EXAMPLES = "all, 3, 0-5, first 2, last 4, last 50%, last 1/3, every 2"
_AMOUNT = r"(?P<amount>\d+%|\d+/\d+|\d+)"
_END = re.compile(rf"(?P<end>first|last) {_AMOUNT}")
_RANGE = re.compile(r"(?P<start>\d+)-(?P<stop>\d+)")
_EVERY = re.compile(r"every (?P<step>[1-9]\d*)")

Layers = Callable[[int], frozenset[int]]


def parse(text: str | int) -> Layers | None:
    """Parse a depth selection, or several joined by commas.

    Args:
        text: ``all``, ``3``, ``0-5`` (both ends included), ``first 2``, ``last 4``, ``last 50%``,
            ``last 1/3``, ``every 2``.

    Returns:
        A function from the model's depth to the selected layers, or None for ``all``, which also
        takes projections outside any layer.

    Raises:
        PolicyError: If the text is none of these.
    """
    parts = [" ".join(part.split()) for part in str(text).lower().split(",")]
    if parts == ["all"]:
        return None
    selections = [_part(part, str(text)) for part in parts]
    return lambda depth: frozenset().union(*(select(depth) for select in selections))


def _part(part: str, whole: str) -> Layers:
    if part.isdigit():
        layer = int(part)
        return lambda depth: frozenset({layer} & set(range(depth)))
    if found := _RANGE.fullmatch(part):
        start, stop = int(found["start"]), int(found["stop"])
        if start <= stop:
            return lambda depth: frozenset(range(start, min(stop + 1, depth)))
    if found := _EVERY.fullmatch(part):
        step = int(found["step"])
        return lambda depth: frozenset(range(0, depth, step))
    if (found := _END.fullmatch(part)) and _is_amount(found["amount"]):
        return _at_end(found["end"] == "first", found["amount"])
    raise PolicyError(
        f"depth {whole!r} cannot be understood",
        why=f"{part!r} is no depth selection",
        remedy=f"write one of: {EXAMPLES}",
    )


def _is_amount(amount: str) -> bool:
    return not amount.endswith("/0") and _share(amount, 100) <= 100


def _at_end(first: bool, amount: str) -> Layers:
    def select(depth: int) -> frozenset[int]:
        count = min(_share(amount, depth), depth) if "%" in amount or "/" in amount else int(amount)
        count = min(count, depth)
        return frozenset(range(count) if first else range(depth - count, depth))

    return select


def _share(amount: str, depth: int) -> int:
    """Number of layers that an amount means; a fraction is rounded, and is one layer at least."""
    if amount.endswith("%"):
        fraction = Fraction(int(amount[:-1]), 100)
    elif "/" in amount:
        fraction = Fraction(amount)
    else:
        return min(int(amount), 100)
    return max(1, round(fraction * depth)) if fraction else 0
