"""Rounding once: the nearest value, also where float32 on the way would say otherwise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from surgery.operations.rounding import round_into


def rounded(exact: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What is written, and that it is what is said to be written where that is finite."""
    out = torch.empty_like(exact, dtype=dtype)
    near = round_into(out, exact, torch.empty_like(exact), torch.empty_like(exact))
    assert torch.equal(out[out.isfinite()].double(), near[out.isfinite()])
    return out


def test_a_sum_just_above_a_tie_goes_up() -> None:
    for dtype, half in ((torch.bfloat16, 2.0**-8), (torch.float16, 2.0**-11)):
        points = [1 + half + 2.0**-40, 1 + half, 1 + half - 2.0**-40]
        exact = torch.tensor(points, dtype=torch.float64)
        expected = torch.tensor([1 + 2 * half, 1, 1], dtype=torch.float64)
        assert torch.equal(rounded(exact, dtype).double(), expected)
        assert torch.equal(rounded(-exact, dtype).double(), -expected)


@given(st.lists(st.floats(), min_size=1))
def test_float16_is_numpy_s(values: list[float]) -> None:
    """numpy rounds float64 to float16 directly."""
    near = np.array(values, dtype=np.float64)
    with np.errstate(over="ignore"):
        expected = near.astype(np.float16)
    found = rounded(torch.from_numpy(near), torch.float16).numpy()
    assert np.array_equal(found, expected, equal_nan=True)
    assert np.array_equal(np.signbit(found), np.signbit(expected)) or np.isnan(expected).any()


@given(st.integers(1, 2**15 - 2), st.integers(-(2**44), 2**44), st.booleans())
def test_bfloat16_is_the_nearest_neighbour(bits: int, beside: int, negative: bool) -> None:
    """A point between two neighbours, named by its distance from the tie in units of 2**-45."""
    low, high = torch.tensor([bits, bits + 1], dtype=torch.int16).view(torch.bfloat16).double()
    if not high.isfinite() or low == 0:
        return
    exact = low + (high - low) * (0.5 + beside * 2.0**-45)
    even = low if bits % 2 == 0 else high
    expected = even if beside == 0 else (high if beside > 0 else low)
    sign = -1 if negative else 1
    assert float(rounded(sign * exact[None], torch.bfloat16).double()) == float(sign * expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wider_types_are_torch_s_own(dtype: torch.dtype) -> None:
    exact = torch.randn(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rounded(exact, dtype), exact.to(dtype))


def test_every_float32_beside_a_tie_of_16_bits_and_its_neighbours_in_float64() -> None:
    """Ties of normal and subnormal values, zeros, overflow: against a search among neighbours."""
    for dtype in (torch.bfloat16, torch.float16):
        whole = torch.arange(0, 2**15, dtype=torch.int32).to(torch.int16).view(dtype).double()
        low, high = whole[:-1], whole[1:]
        low, high = (side[low.isfinite() & high.isfinite()] for side in (low, high))
        tie = low + (high - low) / 2
        for step in (-(2.0**-40), 0.0, 2.0**-40):
            exact = tie + (high - low) * step
            even = torch.where(torch.arange(len(low)) % 2 == 0, low, high)
            expected = even if step == 0 else (high if step > 0 else low)
            for sign in (1, -1):
                assert torch.equal(rounded(sign * exact, dtype).double(), sign * expected)
