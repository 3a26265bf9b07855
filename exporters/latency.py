"""How long one call takes: PyTorch and the exported files side by side in one process."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from exporters.axes import BATCH
from exporters.causal import PAST_SEQUENCE
from exporters.errors import ExportError
from exporters.inputs import Inputs, collect
from exporters.plain import plain_model
from exporters.providers import require_runtime
from exporters.report import ExportReport
from exporters.runtime import open_session, run
from exporters.timing import take_turns, threads_of_torch
from surgery.anatomy.render import as_text

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from rich.table import Table

Files = Mapping[str, str | os.PathLike[str]]


@dataclass(frozen=True)
class Latency:
    """Times of one contender in milliseconds: the median, and the span of the middle 80 %."""

    name: str
    median_ms: float
    low_ms: float
    high_ms: float


@dataclass(frozen=True)
class LatencyReport:
    """A comparison.

    Attributes:
        rows: The contenders, in the order they were measured.
        sizes: Shape of each input.
        threads: Threads that PyTorch and ONNX Runtime were allowed.
        calls: Measured calls of each contender.
        notes: Who could not take part, and why.
    """

    rows: tuple[Latency, ...]
    sizes: dict[str, tuple[int, ...]]
    threads: int
    calls: int
    notes: tuple[str, ...] = ()

    def ratio(self, name: str, to: str) -> float:
        """Median of one contender over that of another."""
        medians = {row.name: row.median_ms for row in self.rows}
        return medians[name] / medians[to]

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return asdict(self)

    def __rich__(self) -> Table:
        """A table; the fastest comes out at 1.00."""
        from rich.table import Table

        shapes = ", ".join(f"{name} {tuple(shape)}" for name, shape in self.sizes.items())
        caption = "; ".join(
            (f"{shapes}, {self.threads} threads, {self.calls} calls each", *self.notes)
        )
        table = Table(title="latency", title_justify="left", caption=caption)
        for column in ("", "median ms", "10 to 90 %", "to the fastest"):
            table.add_column(column, justify="right" if column else "left")
        fastest = min(row.median_ms for row in self.rows)
        for row in self.rows:
            span = f"{row.low_ms:.1f} to {row.high_ms:.1f}"
            table.add_row(row.name, f"{row.median_ms:.1f}", span, f"{row.median_ms / fastest:.2f}")
        return table

    def __str__(self) -> str:
        return as_text(self)


def benchmark(
    model: nn.Module,
    files: Files | ExportReport,
    *,
    inputs: Any = None,
    batch: int = 1,
    rounds: int = 5,
    calls: int = 8,
    warmup: int = 4,
    threads: int | None = None,
    compiled: bool = True,
) -> LatencyReport:
    """Measure eager PyTorch, ``torch.compile`` and exported files against each other.

    Every round gives each contender its turn, so that a busy machine slows all of them alike. A turn is a
    block of calls whose first ones are not measured: for a while the threads of the one before still spin
    and the caches hold its weights, which on two cores was seen to make PyTorch three times as slow.
    Files are opened with the session options that they recommend; one with a cache gets a prompt and no past.

    Args:
        model: The model in eval mode; adapters are folded in a copy.
        files: Paths by name, or the report of an export.
        inputs: As ``example_inputs`` of :func:`exporters.to_onnx`.
        batch: Batch size to measure at.
        rounds: Turns of each contender.
        calls: Measured calls of a turn.
        warmup: Calls of a turn before those, not measured.
        threads: For PyTorch and ONNX Runtime alike; None takes PyTorch's setting.
        compiled: Whether ``torch.compile`` takes part. It needs a C++ compiler.

    Raises:
        ExportError: If the model or the inputs do not allow it, a file takes more than these, or ONNX
            Runtime is not installed.
    """
    require_runtime()
    if min(rounds, calls, batch) < 1:
        raise ExportError(
            f"nothing to measure with rounds={rounds}, calls={calls} and batch={batch}",
            remedy="each must be at least 1",
        )
    plain = plain_model(model).model
    given = collect(plain, inputs)
    given = given.resized({BATCH: batch}) if BATCH in given.sizes else given
    with threads_of_torch(threads) as count:
        contenders, notes = _contenders(plain, files, given, count, compiled)
        times = take_turns(contenders, rounds, calls, warmup)
    rows = tuple(_latency(name, values) for name, values in times.items())
    sizes = {name: tuple(value.shape) for name, value in given.tensors.items()}
    return LatencyReport(rows, sizes, count, rounds * calls, tuple(notes))


def _contenders(
    model: nn.Module, files: Files | ExportReport, inputs: Inputs, threads: int, compiled: bool
) -> tuple[dict[str, Callable[[], Any]], list[str]]:
    found: dict[str, Callable[[], Any]] = {"torch eager": lambda: model(**inputs.kwargs)}
    notes = []
    if compiled:
        fast = torch.compile(model)
        try:
            with torch.no_grad():
                fast(**inputs.kwargs)
            found["torch.compile"] = lambda: fast(**inputs.kwargs)
        except Exception as error:  # whatever the compiler of this machine raises
            notes.append(f"torch.compile did not run: {type(error).__name__}")
    if isinstance(files, ExportReport):
        files = {f"onnx {file.target}": file.path for file in files.files}
    for name, path in files.items():
        session = open_session(path, threads=threads)
        past = _empty_past(session, inputs.sizes.get(BATCH, 1))
        feeds = {**inputs.feeds, **past}
        _check_given(session, feeds, name)
        notes += [f"{name} has a cache: timed on a prompt, with no past"] if past else []
        found[name] = partial(run, session, feeds)
    return found, notes


def _empty_past(session: InferenceSession, batch: int) -> dict[str, np.ndarray[Any, Any]]:
    """The cache that a file takes before a prompt; nothing for a file without."""
    sizes = {BATCH: batch, PAST_SEQUENCE: 0}
    return {
        value.name: np.zeros([sizes.get(size, size) for size in value.shape], np.float32)
        for value in session.get_inputs()
        if PAST_SEQUENCE in value.shape
    }


def _check_given(session: InferenceSession, feeds: Mapping[str, Any], name: str) -> None:
    missing = [value.name for value in session.get_inputs() if value.name not in feeds]
    if missing:
        raise ExportError(
            "a file takes more than the model is given",
            where=name,
            why=f"it takes {', '.join(missing)} too, beside {', '.join(feeds) or 'nothing'}",
            remedy="pass inputs= a mapping with all that model and file take, as example_inputs= "
            "of the export",
        )


def _latency(name: str, times: list[float]) -> Latency:
    ordered = sorted(times)
    tenth = len(ordered) // 10
    return Latency(name, statistics.median(ordered), ordered[tenth], ordered[-1 - tenth])
