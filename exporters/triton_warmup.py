"""What Triton runs once before a model is ready: requests of sizes that belong together, masks of ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from exporters.axes import BATCH, SEQUENCE
from exporters.causal import PAST_SEQUENCE
from exporters.pbtxt import Word, entries

if TYPE_CHECKING:
    from exporters.triton_config import Value

_LENGTH = 8
"""Of a sequence, and where nothing is known: short, for a model may be short of positions."""
Axes = Mapping[str, Mapping[str, int | None]]
"""Least, most and traced size of dynamic axes, as they are in a file's metadata."""
NOTHING_KNOWN: Axes = MappingProxyType({})
_ONES = {"TYPE_INT64": np.int64, "TYPE_INT32": np.int32, "TYPE_INT8": np.int8}
"""Types of masks that have 1 where there is a token; of booleans some mean the opposite."""


def requests(
    inputs: Sequence[Value], batches: Iterable[int], axes: Axes = NOTHING_KNOWN
) -> Iterator[dict[str, Any]]:
    """One request of each batch size, as ``ModelWarmup``; of size 0 where Triton does not know the batch.

    Sequences are short, every other axis is as large as it was traced, both within what the file holds for.
    With a cache it is a single token behind others: an empty past has no bytes, and several tokens behind
    a past are refused by a kernel for more than one row.
    """
    cached = any(PAST_SEQUENCE in value.shape for value in inputs)
    lengths = {axis: _length(axis, known) for axis, known in axes.items()}
    lengths |= {PAST_SEQUENCE: _LENGTH - 1, SEQUENCE: 1} if cached else {}
    for size in batches:
        yield {
            "name": f"batch {size}" if size else "whole",
            "batch_size": size,
            "inputs": entries({value.name: _warm(value, lengths) for value in inputs}),
        }


def files(warmups: Iterable[Mapping[str, Any]]) -> dict[str, bytes]:
    """The content of each file that the requests name, to lie in the model's folder ``warmup``."""
    inputs = [entry["value"] for warmup in warmups for entry in warmup["inputs"]]
    return {
        value["input_data_file"]: np.ones(value["dims"], _ONES[value["data_type"]]).tobytes()
        for value in inputs
        if "input_data_file" in value
    }


def _length(axis: str, known: Mapping[str, int | None]) -> int:
    wanted = None if axis.endswith((SEQUENCE, BATCH)) else known.get("traced")
    at_least = max(wanted or _LENGTH, known.get("least") or 1)
    return min(at_least, known.get("most") or at_least)


def _warm(value: Value, lengths: Mapping[str, int]) -> dict[str, Any]:
    dims = value.sized(lengths, _LENGTH) or [1]
    return {"data_type": Word(value.type), "dims": dims, **_content(value, dims)}


def _content(value: Value, dims: Sequence[int]) -> dict[str, Any]:
    if "mask" in value.name and value.type in _ONES:
        kind = value.type.removeprefix("TYPE_").lower()
        return {"input_data_file": f"ones_{kind}_{math.prod(dims)}"}
    # Random whole numbers would be no tokens; zeros are some.
    floating = value.type in {"TYPE_FP32", "TYPE_FP16"}
    return {"random_data" if floating else "zero_data": True}
