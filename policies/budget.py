"""Parameter budgets: how many numbers the adapters of a model may train. A pure parser."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from policies.errors import PolicyError

EXAMPLES = "0.3%, 300k, 1.5M, 300000"
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
_NUMBER = r"(?:\d{1,3}(?:,\d{3}){1,4}|\d{1,15})(?:\.\d{1,9})?"
_AMOUNT = re.compile(rf"(?P<number>{_NUMBER})(?:(?P<share>%)|(?P<unit>[kmb]?))", re.ASCII)

Limit = Callable[[int], int]


def parse(text: str | int) -> Limit:
    """Parse a budget.

    Args:
        text: A share of the plain model's parameters (``0.3%``), or a count (``300k``, ``1.5M``, ``2B``,
            ``300000``).

    Returns:
        A function from the number of parameters of the plain model to the most that adapters may train.

    Raises:
        PolicyError: If the text is neither, or nothing could ever train under it.
    """
    found = _AMOUNT.fullmatch(re.sub(r"[\s_]", "", str(text)).lower())
    amount = Fraction(found["number"].replace(",", "")) if found else Fraction(0)
    if found is None or amount <= 0 or (found["share"] and amount > 100):
        raise PolicyError(
            f"budget {str(text)!r} cannot be understood",
            why="a budget is a count above zero, or a share of the model's parameters up to 100%; decimals follow a "
            "point, and commas part thousands",
            remedy=f"write one of: {EXAMPLES}",
        )
    if found["share"]:
        return lambda base: int(base * amount / 100)
    count = int(amount * _UNITS[found["unit"]])
    return lambda base: count
