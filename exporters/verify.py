"""Verification: a file is handed over only after it was opened, run and looked through."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import onnx
import torch

from exporters.adapter_session import AdapterSession
from exporters.parity import ParityRow, Reference, Truth, compare
from exporters.precision import TOLERANCES, Tolerance
from exporters.private import local_paths, traces
from exporters.runtime import (
    Operators,
    SessionOptions,
    open_session,
    operators,
    optimized_operators,
    run,
)
from exporters.timing import Beside, quick_look

ADAPTED = "with the adapter"


@dataclass(frozen=True)
class WithAdapter:
    """An adapter file, and what the file under test must compute with it."""

    path: Path
    truth: Truth


@dataclass(frozen=True)
class OperatorCount:
    """How often a fused operator was expected, and how often it was found."""

    domain: str
    op_type: str
    expected: int
    in_file: int
    in_runtime: int

    @property
    def passed(self) -> bool:
        """Whether file and runtime both hold what was expected."""
        return self.expected == self.in_file == self.in_runtime


@dataclass
class Verification:
    """What was found out about one file; ``problems`` is empty if it may be used.

    Attributes:
        parity: How far the outputs are from the model's.
        operators: Fused operators, expected and found.
        top1: Share of predictions on the user's samples that agree.
        latency: Model and file side by side; None where the file is not for this CPU.
        problems: What speaks against it.
    """

    parity: list[ParityRow] = field(default_factory=list)
    operators: list[OperatorCount] = field(default_factory=list)
    top1: float | None = None
    latency: Beside | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def notes(self) -> list[str]:
        """Outputs that fp32 determines less closely than the tolerance asks for."""
        beyond = {
            row.output: row for row in self.parity if row.tolerance < row.error <= row.rounding
        }
        return [
            f"{name} may differ by {row.rounding:.0e}: fp32 itself determines it no more closely"
            for name, row in beyond.items()
        ]


def verify(
    path: Path,
    truth: Reference,
    expected: Operators,
    options: SessionOptions,
    tolerance: Tolerance = TOLERANCES["fp32"],
    adapter: WithAdapter | None = None,
    *,
    timed: bool = False,
) -> Verification:
    """Check one file on disk: structure, traces of this machine, operators, parity, predictions.

    Args:
        path: The file, in a folder with nothing but the export in it.
        truth: What the model itself computes.
        expected: Operators outside of ai.onnx that the file must hold, and no others.
        options: How the file is to be opened.
        tolerance: How far it may be from the model in fp32.
        adapter: What is to be right besides.
        timed: Whether to time file and model side by side.
    """
    threads = torch.get_num_threads()
    found = Verification()
    try:
        onnx.checker.check_model(path, full_check=True)
        found.problems += [f"holds {what}" for what in leaks(path)]
        found.operators = count_operators(path, expected, options)
        session = open_session(path, options=options, threads=threads)
        measured = truth.measure(partial(run, session), tolerance.error)
        found.parity, found.top1 = measured.rows, measured.agreement
        found.problems += [measured.remark] if measured.remark else []
        found.parity += _with_adapter(path, adapter, options, tolerance)
        if timed and all(row.passed for row in found.parity):
            model, inputs = truth.one_call()
            calls = partial(model, **inputs.kwargs), partial(run, session, inputs.feeds)
            found.latency = quick_look(*calls, inputs.sizes, threads)
    except Exception as error:  # the checker and the runtime raise their own, unrelated classes
        found.problems.append(f"{type(error).__name__}: {str(error).strip()[:500]}")
    found.problems += list(_failures(found, tolerance))
    return found


def _with_adapter(
    path: Path, adapter: WithAdapter | None, options: SessionOptions, tolerance: Tolerance
) -> list[ParityRow]:
    if adapter is None:
        return []
    session = AdapterSession(path, {ADAPTED: adapter.path}, options=options)
    rows = compare(partial(session.run, adapter=ADAPTED), adapter.truth, tolerance.error)
    return [replace(row, output=f"{row.output} {ADAPTED}") for row in rows]


def count_operators(
    path: Path, expected: Operators, options: SessionOptions
) -> list[OperatorCount]:
    """Expected against found, for every operator that is expected or not of ai.onnx."""
    in_file = operators(onnx.load(path, load_external_data=False))
    in_runtime = optimized_operators(path, options)
    foreign = {key for key in in_file if key[0] != "ai.onnx"}
    return [
        OperatorCount(*key, expected[key], in_file[key], in_runtime[key])
        for key in sorted(foreign | set(expected))
    ]


def leaks(path: Path) -> list[str]:
    """What a file tells about the machine it was made on: paths, stack traces."""
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        # Weights are no text: a short path may occur in them by chance.
        tensor.ClearField("raw_data")
    # Latin 1 reads any byte; what is looked for is ASCII.
    content = model.SerializeToString().decode("latin-1")
    metadata = "\n".join(entry.value for entry in model.metadata_props)
    paths = (f"the local path {path}" for path in local_paths(metadata))
    return list(dict.fromkeys((*traces(content), *paths)))


def _failures(found: Verification, tolerance: Tolerance) -> Iterator[str]:
    for count in found.operators:
        if not count.passed:
            yield (
                f"{count.domain}::{count.op_type}: {count.expected} expected, {count.in_file} in "
                f"the file, {count.in_runtime} in what ONNX Runtime runs"
            )
    for row in found.parity:
        if math.isnan(row.error):
            yield f"{row.output} has another shape, NaN or an infinity of its own at {row.sizes}"
        elif not row.passed:
            yield f"{row.output} differs by {row.error:.1e} (allowed {row.allowed:.0e}) at {row.sizes}"
    if found.top1 is not None and found.top1 < tolerance.agreement:
        yield f"only {found.top1:.1%} of the top-1 predictions agree"
