"""The depth grammar."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.depth import parse
from policies.errors import PolicyError

DEPTHS = st.integers(1, 96)


def layers(text: str | int, depth: int) -> frozenset[int]:
    select = parse(text)
    assert select is not None
    return select(depth)


def test_all_is_no_restriction() -> None:
    assert parse("all") is None and parse(" ALL ") is None


@given(DEPTHS, st.integers(1, 120))
def test_first_and_last_are_the_ends_and_never_more_than_there_is(depth: int, count: int) -> None:
    held = min(depth, count)
    assert layers(f"first {count}", depth) == frozenset(range(held))
    assert layers(f"last {count}", depth) == frozenset(range(depth - held, depth))


@given(DEPTHS, st.integers(1, 99))
def test_shares_split_a_model_into_first_and_last(depth: int, percent: int) -> None:
    first, last = layers(f"first {percent}%", depth), layers(f"last {percent}%", depth)
    assert len(first) == len(last) == math.ceil(Fraction(percent * depth, 100))
    assert 0 in first and depth - 1 in last


@given(DEPTHS, st.integers(0, 99), st.integers(0, 99))
def test_ranges_include_both_ends(depth: int, start: int, length: int) -> None:
    expected = set(range(start, start + length + 1)) & set(range(depth))
    assert layers(f"{start}-{start + length}", depth) == expected


@given(DEPTHS, st.integers(1, 12))
def test_every(depth: int, step: int) -> None:
    assert layers(f"every {step}", depth) == frozenset(range(0, depth, step))


def test_single_layers_fractions_and_lists() -> None:
    assert layers(3, 12) == {3} and layers(30, 12) == frozenset()
    assert layers("last 1/3", 12) == {8, 9, 10, 11}
    assert layers("last 50%", 5) == {2, 3, 4} and layers("last 50%", 7) == {3, 4, 5, 6}
    assert layers("first 2, last 1, 5", 12) == {0, 1, 5, 11}


@pytest.mark.parametrize(
    "text",
    [
        *("", "lst 4", "last", "last -1", "last 0", "5-2", "every 0", "last 1/0", "last 1/00"),
        *("first 3/2", "last 120%", "0..5", "-1", "\u00b2", "9" * 5000, "0-1,", "all, 3"),
    ],
)
def test_anything_else_is_refused_with_examples(text: str) -> None:
    with pytest.raises(PolicyError, match="cannot be understood") as caught:
        parse(text)
    assert "last 4" in str(caught.value.remedy)


@given(DEPTHS, st.text(st.sampled_from("0123456789 -/%,firstlaevy"), max_size=12))
def test_any_text_is_understood_or_refused(depth: int, text: str) -> None:
    try:
        select = parse(text)
    except PolicyError:
        return
    assert select is None or select(depth) <= set(range(depth))


def test_space_and_case_do_not_matter() -> None:
    assert layers(" Last  50 % ", 12) == layers("last 50%", 12)
    assert layers("0 - 5,  LAST 1 / 3", 12) == layers("0-5, last 1/3", 12)


@pytest.mark.parametrize(
    ("text", "meant"), [("lsat 4", "last 4"), ("frst 50%", "first 50%"), ("al", "all")]
)
def test_a_slip_is_answered_with_the_near_word(text: str, meant: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse(text)
    assert f"did you mean {meant!r}" in str(caught.value.remedy)
