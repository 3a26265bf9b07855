"""Does the file compute what the model computes? Eager PyTorch in fp32 against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
from torch import nn

from exporters.capture import Captured
from exporters.coverage import told
from exporters.eager import Array, Case, difference, outputs_of, rounding
from exporters.errors import ExportError
from exporters.inputs import Inputs
from exporters.probes import first_taken, first_without_nan, padded_otherwise, probes
from surgery.errors import told_by

_EXACT = 1e-4
"""The tolerance of a file in fp32 is below this."""

_SLACK, _MOST = 4, 1e-3
"""What fp32 leaves open, file and model may be apart by: this often the model's own rounding, at most."""

_DRAWS = "the model gives other outputs each time it is run: it draws random numbers"

Call = Callable[[Mapping[str, Array]], list[Array]]
"""From the inputs by name to the outputs."""


@dataclass(frozen=True)
class ParityRow:
    """One output at one set of sizes.

    Attributes:
        output: Its name.
        sizes: Size of each dynamic axis.
        error: max|difference| / max|reference|, of finite values; NaN if there is nothing to compare: another
            shape, a NaN, an infinity on one side alone.
        tolerance: The error that always passes.
        rounding: What the model's own rounding lets pass, where that was asked for.
    """

    output: str
    sizes: dict[str, int]
    error: float
    tolerance: float
    rounding: float = 0.0

    @property
    def allowed(self) -> float:
        """The largest error that passes: the tolerance, or the model's own rounding."""
        return max(self.tolerance, self.rounding)

    @property
    def passed(self) -> bool:
        """Whether the error is within what is allowed; NaN is not."""
        return self.error <= self.allowed


@dataclass(frozen=True)
class Found:
    """How far a file is from the model.

    Attributes:
        rows: One for each output of each call.
        agreement: Share of top-1 predictions that agree; None if there was nothing to predict.
        remark: What explains errors that no file could avoid.
    """

    rows: list[ParityRow]
    agreement: float | None
    remark: str | None = None


class Reference(Protocol):
    """What a file is measured against."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know about it."""

    def measure(self, call: Call, tolerance: float) -> Found:
        """Make every call that is to be tried, and compare."""

    def one_call(self) -> tuple[nn.Module, Inputs]:
        """A call by which model and file may be timed."""


@dataclass(frozen=True)
class Truth:
    """What the model itself computes: the outputs of eager PyTorch in fp32, computed once for all files.

    Attributes:
        outputs: Name of each output.
        cases: Inputs at all sizes to be tried, with their outputs.
        hidden: Inputs whose rows are padded in other ways, with their outputs: for exact files.
        samples: The user's own inputs, for top-1 agreement, with their outputs.
        model: In fp32.
        notes: What a reader should know about them.
    """

    outputs: tuple[str, ...]
    cases: tuple[Case, ...]
    samples: Case | None
    model: nn.Module
    hidden: tuple[Case, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: nn.Module, captured: Captured, samples: Inputs | None = None) -> Truth:
        """Run the model on every probe, and on the user's samples.

        Raises:
            ExportError: If the model does not take its inputs or the samples, or runs at no other size.
        """
        cases = tuple(first_taken(model, tries, captured.inputs) for tries in probes(captured))
        hidden = tuple(first_without_nan(model, padded_otherwise(cases[-1][0])))
        notes = tuple(told(model, captured, cases))
        chosen = None if samples is None else _sampled(model, samples)
        return cls(captured.outputs, cases, chosen, model, hidden, notes)

    @cached_property
    def open(self) -> list[float]:
        """How far fp32 leaves each output open, absolute; asked for where a file is beyond its tolerance.

        Cosines near 0, differences of large numbers: two orders of summation are further apart there
        than any tolerance in relation to the result.
        """
        return rounding(self.model, self.cases + self.hidden) or [0.0] * len(self.outputs)

    @cached_property
    def steady(self) -> bool:
        """Whether the model, run once more, makes the same of the same inputs."""
        inputs, before = self.cases[0]
        pairs = zip(before, outputs_of(self.model, inputs), strict=True)
        return not any(relative_error(*pair) > _MOST for pair in pairs)

    def measure(self, call: Call, tolerance: float) -> Found:
        """See :class:`Reference`."""
        # Beside the lowest number of 16 bits scores are not nothing: there, what sees nothing is left open.
        exact = tolerance <= _EXACT
        rows = compare(call, self, tolerance, self.cases + self.hidden if exact else self.cases)
        failed = any(not row.passed for row in rows)
        return Found(rows, top1_agreement(call, self), self._fault() if failed else None)

    def one_call(self) -> tuple[nn.Module, Inputs]:
        """See :class:`Reference`; the first, of one row where that may be."""
        return self.model, self.cases[0][0]

    def _fault(self) -> str | None:
        """What the model itself does that no file can be measured by."""
        for inputs, outputs in self.cases:
            if any(np.isnan(output).any() for output in outputs):
                return f"the model itself gives NaN for {_shapes(inputs)}"
        return None if self.steady else _DRAWS


def _sampled(model: nn.Module, samples: Inputs) -> Case:
    try:
        return samples, outputs_of(model, samples)
    except Exception as error:  # whatever the model raises for inputs it cannot take
        raise ExportError(
            f"{type(model).__name__} does not take the samples",
            where=_shapes(samples),
            why=told_by(error),
            remedy="pass samples= of the same kind as the example inputs",
        ) from error


def compare(
    call: Call, truth: Truth, tolerance: float, cases: Sequence[Case] | None = None
) -> list[ParityRow]:
    """Make every call and measure each output; the calls are those of ``truth`` if no others are given."""
    rows = []
    for inputs, expected in truth.cases if cases is None else cases:
        found = zip(truth.outputs, expected, call(inputs.feeds), strict=True)
        for number, (name, e, f) in enumerate(found):
            row = ParityRow(name, inputs.sizes, relative_error(e, f), tolerance)
            rows.append(row if row.passed else replace(row, rounding=_left_open(truth, number, e)))
    return rows


def _left_open(truth: Truth, output: int, expected: Array) -> float:
    largest = _largest(expected)
    return min(_SLACK * truth.open[output] / largest, _MOST) if largest else 0.0


def top1_agreement(call: Call, truth: Truth) -> float | None:
    """Share of the samples' predictions (argmax of the first output) on which model and file agree."""
    if truth.samples is None:
        return None
    inputs, expected = truth.samples
    found = call(inputs.feeds)
    return float((expected[0].argmax(-1) == found[0].argmax(-1)).mean())


def relative_error(expected: Array, found: Array) -> float:
    """max|difference| / max|reference| of finite values; NaN for other shapes, NaN, and infinity on one side alone."""
    largest, apart = _largest(expected), difference(expected, found)
    return apart / largest if largest else apart


def _largest(values: Array) -> float:
    return float(np.abs(values[np.isfinite(values)].astype(np.float64)).max(initial=0))


def _shapes(inputs: Inputs) -> str:
    return ", ".join(f"{name} {tuple(value.shape)}" for name, value in inputs.tensors.items())
