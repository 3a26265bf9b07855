"""What a model is run on to see whether a file computes the same: other sizes, values, padding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np
from torch import Tensor, nn

from exporters.axes import BATCH, SEQUENCE
from exporters.capture import Captured
from exporters.draws import is_one_number
from exporters.eager import Case, outputs_of
from exporters.errors import ExportError
from exporters.inputs import Choice, Inputs
from exporters.padding import as_padding, is_mask, token_of
from surgery.errors import told_by

BATCHES = (1, 2, 5)
_LONGER = 3

Turns = tuple[int, ...]
"""Sizes of an axis, to be tried in turn until the model takes one."""

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
        axis: _choices(axis, size, captured.limits[axis], axis in captured.raised)
        for axis, size in inputs.sizes.items()
    }
    for seed, chosen in enumerate(product(*choices.values())):
        turns = (_at(turn, chosen) for turn in range(max(map(len, chosen), default=1)))
        each = [dict(zip(choices, sizes, strict=True)) for sizes in turns]
        keeps = [*_KEEP, *(_and_numbers(keep) for keep in _KEEP)] if _has_numbers(inputs) else _KEEP
        yield [inputs.resized(sizes, seed, keep) for sizes in each for keep in keeps]


def _has_numbers(inputs: Inputs) -> bool:
    return any(is_one_number(value) for value in inputs.tensors.values())


def _and_numbers(keep: Choice) -> Choice:
    """What is one number everywhere keeps it too: not every number will do in its place."""
    return lambda name, value: keep(name, value) or is_one_number(value)


def first_taken(model: nn.Module, tries: list[Inputs], given: Inputs) -> Case:
    """The first inputs of which the model makes numbers, else those it takes, with its outputs.

    Args:
        model: The model.
        tries: Inputs.
        given: Those of the example.

    Raises:
        ExportError: If it takes none of them, or not even those given.
    """
    undefined: Case | None = None
    last: Exception | None = None
    for inputs in tries:
        try:
            found = inputs, outputs_of(model, inputs)
        except Exception as error:  # whatever the model raises for inputs it cannot take
            last = error
            continue
        if not _has_nan(found):
            return found
        undefined = undefined or found
    if undefined is not None:
        return undefined
    _check_taken(model, given)
    raise ExportError(
        f"{type(model).__name__} does not run at other sizes than those of the example inputs",
        where=str(tries[-1].sizes),
        why=None if last is None else told_by(last),
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


def first_without_nan(model: nn.Module, tries: Iterator[Inputs]) -> Iterator[Case]:
    """The first inputs that the model takes and makes numbers of, if there are any."""
    for inputs in tries:
        try:
            found = inputs, outputs_of(model, inputs)
        except Exception:  # whatever the model raises for padding it cannot take
            continue
        if not _has_nan(found):
            yield found
            return


def _has_nan(case: Case) -> bool:
    return any(np.isnan(output).any() for output in case[1])


def _at(turn: int, chosen: tuple[Turns, ...]) -> tuple[int, ...]:
    return tuple(turns[min(turn, len(turns) - 1)] for turns in chosen)


def _choices(axis: str, size: int, limits: tuple[int, int], raised: bool) -> tuple[Turns, ...]:
    """Sizes to be tried, all of them within the limits; what was raised is tried as it was in the example."""
    lower, upper = limits
    if axis.endswith(BATCH):
        batches = dict.fromkeys(min(max(batch, lower), upper) for batch in BATCHES)
        return tuple((batch,) for batch in batches)
    if axis.endswith(SEQUENCE):
        least = max(lower, 2)
        others = (size + _LONGER, size - _LONGER, upper, least)
        found = [other for other in others if least <= other <= upper and other != size][:1]
    else:
        # An image of twice the size divides into patches and strides as this one does, and so does half of it.
        found = [n for n in (min(2 * size, upper), size // 2) if lower <= n != size]
        found += [size] if found and 2 * size > upper else []
    return ((size,), *([tuple(found)] if found else []), *([(1,)] if raised else []))
