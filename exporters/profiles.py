"""TensorRT's optimisation profiles: the sizes that an engine is built for."""

from __future__ import annotations

from collections.abc import Mapping

from exporters.axes import BATCH, SEQUENCE
from exporters.capture import Captured
from exporters.errors import ExportError
from exporters.inputs import Inputs
from exporters.precision import Precision

Sizes = tuple[int, int, int]
"""Smallest, most frequent and largest size of an axis."""

Profile = Mapping[str, Sizes]
"""Sizes by name of a dynamic axis."""

_BATCHES: Sizes = (1, 8, 32)
_LENGTHS: Sizes = (1, 128, 512)


def complete(captured: Captured, wanted: Profile | None = None) -> dict[str, Sizes]:
    """The sizes of every dynamic axis, within what the model accepts.

    Args:
        captured: The program; axes that its model fixes have no profile.
        wanted: In place of the usual ones: batches 1 to 32, best at 8; lengths 1 to 512, best at 128;
            any other axis as in the example, and up to twice that.

    Raises:
        ExportError: If there is no such axis, or its sizes do not ascend within the model's limits.
    """
    sizes = captured.inputs.sizes
    for axis, chosen in (wanted or {}).items():
        if axis not in sizes:
            raise _unfit(axis, "there is no such dynamic axis", sizes)
        _check(axis, chosen, captured.limits[axis][1], sizes)
    usual = {axis: _usual(axis, size, captured.limits[axis][1]) for axis, size in sizes.items()}
    return {**usual, **(wanted or {})}


def provider_options(inputs: Inputs, profile: Profile, precision: Precision) -> dict[str, str]:
    """What ONNX Runtime's TensorRT provider is told: shapes of all inputs, and whether fp16 may be used."""
    words = {"trt_fp16_enable": "1"} if precision == "fp16" else {}
    if not profile:
        return words
    for place, word in enumerate(("min", "opt", "max")):
        sized = inputs.resized({axis: chosen[place] for axis, chosen in profile.items()})
        shapes = {name: "x".join(map(str, t.shape)) for name, t in sized.tensors.items() if t.ndim}
        words[f"trt_profile_{word}_shapes"] = ",".join(f"{n}:{s}" for n, s in shapes.items())
    return words


def in_words(profile: Profile) -> str:
    """The profile in words."""
    axes = (
        f"{axis} {low} to {high}, best at {best}" for axis, (low, best, high) in profile.items()
    )
    return "; ".join(axes) or "one shape"


def _usual(axis: str, size: int, limit: int) -> Sizes:
    low, best, high = (size, size, 2 * size)
    if axis.endswith(BATCH):
        low, best, high = _BATCHES
    elif axis.endswith(SEQUENCE):
        low, best, high = _LENGTHS
    return low, min(best, limit), min(high, limit)


def _check(axis: str, chosen: Sizes, limit: int, sizes: Mapping[str, int]) -> None:
    whole = len(chosen) == 3 and all(isinstance(size, int) for size in chosen)
    if not whole or not 1 <= chosen[0] <= chosen[1] <= chosen[2]:
        raise _unfit(axis, f"{chosen!r} is no (smallest, most frequent, largest)", sizes)
    if chosen[2] > limit:
        raise _unfit(axis, f"the model accepts at most {limit}", sizes)


def _unfit(axis: str, why: str, sizes: Mapping[str, int]) -> ExportError:
    known = ", ".join(sizes) or "none"
    return ExportError(
        "the profile does not fit the graph",
        where=axis,
        why=why,
        remedy=f"the dynamic axes are: {known}; pass profile={{'batch': (1, 8, 32)}}",
    )
