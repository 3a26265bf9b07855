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
    """``torch.cummax``: the largest value so far along ``dim``, and where the last such value stands.

    Every place is compared with every one before it: n^2 comparisons for n of them.
    """
    order = list(range(len(self.shape)))
    order[dim], order[-1] = order[-1], order[dim]
    x = op.Transpose(self, perm=order)
    zero, one, last = (op.Constant(value_int=n) for n in (0, 1, -1))
    places = op.Range(zero, op.Squeeze(op.Shape(x, start=-1)), one)
    row, column = op.Constant(value_ints=[-2]), op.Constant(value_ints=[-1])
    seen = op.LessOrEqual(places, op.Unsqueeze(places, column))
    lowest = op.Constant(value=ir.tensor([_lowest(self.dtype)], self.dtype))
    each = op.Unsqueeze(x, row)
    values = op.ReduceMax(op.Where(seen, each, lowest), column, keepdims=0)
    equal = op.And(seen, op.Equal(each, op.Unsqueeze(values, column)))
    indices = op.ReduceMax(op.Where(equal, places, last), column, keepdims=0)
    return op.Transpose(values, perm=order), op.Transpose(indices, perm=order)


def _lowest(dtype: ir.DataType) -> float | int:
    return -math.inf if dtype.is_floating_point() else int(np.iinfo(dtype.numpy()).min)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.searchsorted.Tensor: searchsorted,
    torch.ops.aten.cummax.default: cummax,
}
"""As ``torch.onnx.export`` takes them; they are traced at opset 18, which is what it translates to first."""
