"""The budget grammar."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.budget import EXAMPLES, parse
from policies.errors import PolicyError


@given(st.integers(1, 10**12), st.integers(1, 10_000))
def test_a_share_is_that_share_and_never_a_weight_more(base: int, hundredths: int) -> None:
    limit = parse(f"{hundredths / 100:.2f}%")(base)
    exact = Fraction(hundredths, 10_000) * base
    assert limit <= exact < limit + 1


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("300k", 300_000),
        ("1.5M", 1_500_000),
        (" 2 b ", 2 * 10**9),
        ("300_000", 300_000),
        ("300,000", 300_000),
        (7, 7),
    ],
)
def test_a_count_is_the_same_for_every_model(text: str | int, count: int) -> None:
    assert parse(text)(10) == parse(text)(10**10) == count


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "0%",
        "-3k",
        "101%",
        "lots",
        "3 q",
        "1e6",
        "%",
        "5kk",
        "٣k",
        "0,3%",
        "3,0k",
        "1,00,000",
        ",300",
    ],
)
def test_what_makes_no_sense_is_refused_with_examples(text: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse(text)
    assert EXAMPLES in str(caught.value.remedy)
