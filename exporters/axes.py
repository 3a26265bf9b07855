"""Which dimensions of the inputs stay open, and what they are called."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from exporters.errors import ExportError

BATCH = "batch"
SEQUENCE = "sequence"

Axes = Mapping[str, Mapping[int, str]]
"""Name of each dynamic dimension, by input name: ``{"x": {0: "batch"}}``."""


def usual_axes(tensors: Mapping[str, Tensor]) -> tuple[Axes, tuple[str, ...]]:
    """Dimension 0 is the batch, dimension 1 of whole numbers the sequence; none where there is no one batch.

    The patches of several images lie in one row, beside a row of their grids.
    """
    rows: dict[int, str] = {}
    for name, value in tensors.items():
        if value.ndim:
            rows.setdefault(value.shape[0], name)
    if len(rows) > 1:
        told = ", ".join(f"{size} in {name}" for size, name in rows.items())
        return {}, (f"every shape is fixed: the inputs have no batch in common, {told}",)
    return _proposed_axes(tensors), ()


def _proposed_axes(tensors: Mapping[str, Tensor]) -> dict[str, dict[int, str]]:
    axes: dict[str, dict[int, str]] = {}
    for name, value in tensors.items():
        axes[name] = {0: BATCH} if value.ndim else {}
        if value.ndim > 1 and not value.is_floating_point():
            axes[name][1] = f"decoder_{SEQUENCE}" if name.startswith("decoder_") else SEQUENCE
    return axes


def check_axes(tensors: Mapping[str, Tensor], axes: Axes) -> None:
    """Whether the axes are dimensions of the inputs, and each is of one size.

    Raises:
        ExportError: With the first that is not.
    """
    sizes: dict[str, tuple[str, int]] = {}
    for name, dims in axes.items():
        for dim, axis in dims.items():
            if not axis.isidentifier():
                why = f"{axis!r} is no name: letters, digits and '_' make one"
                raise _bad_axis(name, why, tensors)
            if name not in tensors or not 0 <= dim < tensors[name].ndim:
                raise _bad_axis(name, f"there is no dimension {dim} to be called {axis!r}", tensors)
            size = tensors[name].shape[dim]
            first, expected = sizes.setdefault(axis, (name, size))
            if size != expected:
                why = f"{axis} is {expected} in {first} and {size} here"
                raise _bad_axis(name, why, tensors)


def _bad_axis(name: str, why: str, tensors: Mapping[str, Tensor]) -> ExportError:
    known = ", ".join(f"{n} {tuple(t.shape)}" for n, t in tensors.items())
    return ExportError(
        "the dynamic dimensions do not fit the example inputs",
        where=name,
        why=why,
        remedy=f'the inputs are {known}; pass dynamic={{"{next(iter(tensors))}": {{0: "batch"}}}} '
        "with each dimension that is open, or dynamic=False",
    )
