"""What errors say."""

from __future__ import annotations

import pytest

from policies.errors import told_by


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("no such thing\nand more of it"), "ValueError: no such thing"),
        (RuntimeError("\n  late\n"), "RuntimeError: late"),
        (AssertionError(), "AssertionError"),
        (OSError(" "), "OSError"),
    ],
)
def test_somebody_elses_error_is_told_in_a_line_even_if_it_says_nothing(error, told):
    assert told_by(error) == told
