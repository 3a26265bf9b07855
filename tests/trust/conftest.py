"""How many cases: a bounded share here, many under ``python -m benchmarks.trust``.

``TRUST_TIMES`` multiplies the examples of every property, ``TRUST_TALLY`` names a file to which
each test adds what it tried, as lines of JSON.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator

import pytest


class Tally(Counter[str]):
    """What a test tried: ``cases``, ``faults``, ``files``, ``cycles``, ``weights``."""


@pytest.fixture
def tally() -> Iterator[Tally]:
    count = Tally()
    yield count
    if path := os.environ.get("TRUST_TALLY"):
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(count) + "\n")
