"""Operators that torch's exporter does not know, in standard ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.searchsorted.Tensor: searchsorted
}
"""As ``torch.onnx.export`` takes them; they are traced at opset 18, which is what it translates to first."""
