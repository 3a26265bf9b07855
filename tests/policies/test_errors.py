"""What errors say."""

from __future__ import annotations

import pytest

from policies.errors import told_at_length, told_by


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


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("sizes differ:\n\t(3,)\n\t(4,)"), "ValueError: sizes differ: (3,) (4,)"),
        (RuntimeError("x" * 1_000), "RuntimeError: " + "x" * 300),
        (AssertionError(), "AssertionError"),
    ],
)
def test_what_goes_over_lines_is_told_in_one_of_bounded_length(error, told):
    assert told_at_length(error) == told
