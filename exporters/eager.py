"""What the model itself computes, and how far fp32 determines it: eager PyTorch in fp32 and in fp64."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from exporters.inputs import Inputs
from surgery.anatomy.capture import without_fast_path

Array = np.ndarray[Any, Any]
Case = tuple[Inputs, list[Array]]
"""Inputs, and what the model makes of them."""


def outputs_of(model: nn.Module, inputs: Inputs) -> list[Array]:
    """The output tensors, flattened as the exporter flattens them.

    Without torch's fast path of encoders: it computes what a graph does, but for zeros in the place of padding.
    """
    with torch.no_grad(), without_fast_path():
        return flattened(model(**inputs.kwargs))


def flattened(outputs: Any) -> list[Array]:
    """Every tensor that a model returned, in the exporter's order."""
    leaves = pytree.tree_leaves(outputs)
    return [leaf.cpu().numpy() for leaf in leaves if isinstance(leaf, Tensor)]


def rounding(model: nn.Module, cases: Sequence[Case]) -> list[float]:
    """The largest ``|fp32 - fp64|`` of each output over all cases; a copy of the model computes in fp64.

    Args:
        model: In fp32.
        cases: What it computed.

    Returns:
        One number an output; none if the model does not compute in fp64.
    """
    try:
        exact = copy.deepcopy(model).double()
        found = [outputs_of(exact, _widened(inputs)) for inputs, _ in cases]
    except Exception:  # whatever a model raises that fixes its dtypes
        return []
    errors = [
        [_apart(*pair) for pair in zip(rounded, wide, strict=True)]
        for (_, rounded), wide in zip(cases, found, strict=True)
    ]
    return [max(output) for output in zip(*errors, strict=True)]


def _widened(inputs: Inputs) -> Inputs:
    return inputs.on(next(iter(inputs.tensors.values())).device, torch.float64)


def difference(expected: Array, found: Array) -> float:
    """The largest one, where an infinity is as far as can be from all but itself; NaN if values are not comparable."""
    if expected.shape != found.shape:
        return math.nan
    expected, found = expected.astype(np.float64), found.astype(np.float64)
    same = np.isinf(expected) & (expected == found)
    gaps = np.abs(np.where(same, 0, expected) - np.where(same, 0, found))
    largest = float(gaps.max(initial=0))
    return largest if math.isfinite(largest) else math.nan


def _apart(rounded: Array, exact: Array) -> float:
    found = difference(rounded, exact)
    return 0.0 if math.isnan(found) else found
