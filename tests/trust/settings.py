"""Bounded and reproducible in the tests, many and random in ``python -m benchmarks.trust``."""

from __future__ import annotations

import os

import hypothesis
from hypothesis import HealthCheck

TIMES = float(os.environ.get("TRUST_TIMES", "1"))
MANY = TIMES > 1


def times(examples: int) -> int:
    """So many here, in proportion more in a long run."""
    return max(1, round(examples * TIMES))


def examples(count: int) -> hypothesis.settings:
    """Settings of a property with ``count`` examples in the tests."""
    return hypothesis.settings(
        max_examples=times(count),
        deadline=None,
        derandomize=not MANY,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
