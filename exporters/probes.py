"""What a model is run on to see whether a file computes the same: other sizes, values, padding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np
from torch import Tensor, nn

from exporters.axes import BATCH, SEQUENCE
from exporters.capture import Captured
from exporters.eager import Case, outputs_of
from exporters.errors import ExportError
from exporters.inputs import Choice, Inputs, as_padding, is_mask, token_of
from surgery.errors import told_by

BATCHES = (1, 2, 5)
_LONGER = 3


_KEEP: tuple[Choice, ...] = (
    lambda name, value: False,
    lambda name, value: not value.is_floating_point() and not is_mask(name, value),
    lambda name, value: not value.is_floating_point(),
)
"""What keeps its values: nothing; or ids, since image tokens belong to images; or masks too."""


def probes(captured: Captured) -> Iterator[list[Inputs]]:
    """Inputs at batches 1, 2 and 5, tokens at two lengths with ragged masks, all else at two sizes.

    Yields:
        At each set of sizes what is to be tried in turn until the model takes it.
    """
    inputs = captured.inputs
    if not inputs.sizes:
        yield [inputs]
    choices = {
        axis: _choices(axis, size, captured.limits[axis]) for axis, size in inputs.sizes.items()
    }
    for seed, chosen in enumerate(product(*choices.values())):
        sizes = dict(zip(choices, chosen, strict=True))
        yield [inputs.resized(sizes, seed, keep) for keep in _KEEP]


def first_taken(model: nn.Module, tries: list[Inputs], given: Inputs) -> Case:
    """The first inputs that the model takes, with what it makes of them; ``given`` are the example's.

    Raises:
        ExportError: If it takes none of them, or not even those given.
    """
    for inputs in tries:
        try:
            return inputs, outputs_of(model, inputs)
        except Exception as error:  # whatever the model raises for inputs it cannot take
            last = error
    _check_taken(model, given)
    raise ExportError(
        f"{type(model).__name__} does not run at other sizes than those of the example inputs",
        where=str(tries[-1].sizes),
        why=told_by(last),
        remedy="pass dynamic=False, or a mapping of those dimensions that the model leaves open",
    ) from last


def _check_taken(model: nn.Module, given: Inputs) -> None:
    """A graph can be captured on dtypes on which nothing can be computed."""
    try:
        outputs_of(model, given)
    except Exception as error:  # as above
        told = (f"{n} {tuple(t.shape)} of {t.dtype}" for n, t in given.tensors.items())
        raise ExportError(
            f"{type(model).__name__} does not take the example inputs",
            where=", ".join(told).replace("torch.", ""),
            why=told_by(error),
            remedy="pass example_inputs= that the model takes; it is exported in float32",
        ) from error


def padded_otherwise(inputs: Inputs) -> Iterator[Inputs]:
    """The same with padding on the left, and rows that are nothing else; then on the left alone.

    Yields:
        Nothing if there is no padding mask.
    """
    masks = {name: value for name, value in inputs.tensors.items() if inputs.pads(name)}
    for emptied in (True, False) if masks else ():
        made = {name: _padded_left(value, emptied) for name, value in masks.items()}
        yield replace(inputs, tensors={**inputs.tensors, **made})


def _padded_left(mask: Tensor, emptied: bool) -> Tensor:
    """Of three rows, the first is padded on the left, the second holds nothing if ``emptied``, the third stays."""
    seen = mask.bool() == token_of(mask)
    seen[::3, : mask.shape[1] // 3], seen[::3, mask.shape[1] // 3 :] = False, True
    if emptied:
        seen[1::3] = False
    return as_padding(seen, mask)


def first_finite(model: nn.Module, tries: Iterator[Inputs]) -> Iterator[Case]:
    """The first inputs that the model takes and makes numbers of, if there are any."""
    for inputs in tries:
        try:
            outputs = outputs_of(model, inputs)
        except Exception:  # whatever the model raises for padding it cannot take
            continue
        if all(np.isfinite(output).all() for output in outputs):
            yield inputs, outputs
            return


def _choices(axis: str, size: int, limits: tuple[int, int]) -> tuple[int, ...]:
    """Sizes to be tried, all of them within the limits."""
    lower, upper = limits
    if axis.endswith(BATCH):
        return tuple(dict.fromkeys(min(max(batch, lower), upper) for batch in BATCHES))
    if not axis.endswith(SEQUENCE):
        # An image of twice the size divides into patches and strides as this one does.
        return (size, 2 * size) if 2 * size <= upper else (size,)
    least = max(lower, 2)
    others = (size + _LONGER, size - _LONGER, upper, least)
    return (size, *[other for other in others if least <= other <= upper and other != size][:1])
