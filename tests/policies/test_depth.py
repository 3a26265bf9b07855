"""The depth grammar."""

from __future__ import annotations

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
    assert len(first) == len(last) == max(1, round(percent * depth / 100))
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
    assert layers("first 2, last 1, 5", 12) == {0, 1, 5, 11}


@pytest.mark.parametrize(
    "text",
    ["", "lst 4", "last", "last -1", "5-2", "every 0", "last 1/0", "last 120%", "0..5", "-1"],
)
def test_anything_else_is_refused_with_examples(text: str) -> None:
    with pytest.raises(PolicyError, match="cannot be understood") as caught:
        parse(text)
    assert "last 4" in str(caught.value.remedy)
