"""Operators that torch's exporter does not know, in standard ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import opset18 as op


def searchsorted(
    boundaries: Any,
    values: Any,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Any = None,
) -> Any:
    """``torch.searchsorted``: how many boundaries lie before each value.

    Shapes: boundaries (..., n) sorted along the last dimension, values (..., m); found (..., m).

    Raises:
        NotImplementedError: If the boundaries are not sorted themselves.
    """
    if sorter is not None:
        raise NotImplementedError("searchsorted with a sorter")
    before = op.LessOrEqual if right or side == "right" else op.Less
    last = op.Constant(value_ints=[-1])
    lower = before(
        op.Unsqueeze(boundaries, op.Constant(value_ints=[-2])), op.Unsqueeze(values, last)
    )
    kind = ir.DataType.INT32 if out_int32 else ir.DataType.INT64
    return op.ReduceSum(op.Cast(lower, to=kind), last, keepdims=0)


def cummax(self: Any, dim: int) -> tuple[Any, Any]:
    """``torch.cummax``: the largest value so far along ``dim``, and where the last such value stands."""
    return _so_far(self, dim, op.ReduceMax, _limits(self.dtype)[0])


def cummin(self: Any, dim: int) -> tuple[Any, Any]:
    """``torch.cummin``: the smallest value so far along ``dim``, and where the last such value stands."""
    return _so_far(self, dim, op.ReduceMin, _limits(self.dtype)[1])


def _so_far(x: Any, dim: int, reduce: Callable[..., Any], beyond: float | int) -> tuple[Any, Any]:
    """Every place is compared with every one before it: n^2 comparisons for n of them."""
    order = list(range(len(x.shape)))
    order[dim], order[-1] = order[-1], order[dim]
    zero, one, none = (op.Constant(value_int=n) for n in (0, 1, -1))
    row, column = op.Constant(value_ints=[-2]), op.Constant(value_ints=[-1])
    turned = op.Transpose(x, perm=order)
    places = op.Range(zero, op.Squeeze(op.Shape(turned, start=-1)), one)
    seen = op.LessOrEqual(places, op.Unsqueeze(places, column))
    each, unseen = op.Unsqueeze(turned, row), op.Constant(value=ir.tensor([beyond], x.dtype))
    values = reduce(op.Where(seen, each, unseen), column, keepdims=0)
    equal = op.And(seen, op.Equal(each, op.Unsqueeze(values, column)))
    indices = op.ReduceMax(op.Where(equal, places, none), column, keepdims=0)
    return op.Transpose(values, perm=order), op.Transpose(indices, perm=order)


def _limits(dtype: ir.DataType) -> tuple[float | int, float | int]:
    if dtype.is_floating_point():
        return -math.inf, math.inf
    whole = np.iinfo(dtype.numpy())
    return int(whole.min), int(whole.max)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.searchsorted.Tensor: searchsorted,
    torch.ops.aten.cummax.default: cummax,
    torch.ops.aten.cummin.default: cummin,
}
"""As ``torch.onnx.export`` takes them; they are traced at opset 18, which is what it translates to first."""
