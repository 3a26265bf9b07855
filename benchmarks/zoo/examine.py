"""One model under examination: does it run, is it read, do the claims hold."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

import surgery
from benchmarks.record import RESULTS
from benchmarks.zoo.record import NONE, PARTIAL, PROVED, UNREAD, WRONG, Record
from surgery.anatomy.capture import unchanged
from surgery.anatomy.inputs import ExampleInputs, example_inputs
from surgery.anatomy.runtime import watch
from surgery.anatomy.types import Anatomy
from surgery.anatomy.verify import Verification
from surgery.errors import SurgeryError


@dataclass
class Specimen:
    """A small instance of a model, with inputs if it does not tell its own, and how it was shrunk."""

    model: nn.Module
    inputs: Any = None
    small: str = ""


class Zoo(Protocol):
    """A library of models."""

    def names(self) -> list[str]:
        """Every model, families first: one of each family before the second of any."""

    def family(self, name: str) -> str:
        """The family that a model belongs to."""

    def specimens(self, name: str) -> Iterator[Specimen]:
        """Random instances, the smallest first; the next is asked for where one is not proved."""


def examine(zoo: Zoo, name: str) -> Record:
    """Build, run, read and verify one model; whatever goes wrong is in the record.

    A very small instance may hide what a larger one shows: one proved instance proves the model, and none
    may attend where a model is said to have no attention. A refuted claim is kept in any case.
    """
    torch.manual_seed(0)
    specimens, first = zoo.specimens(name), None
    while (record := _examined(zoo, name, specimens, first)) is not None:
        if record.status in (PROVED, WRONG):
            return record
        if first is None or (first.status == NONE and record.run):
            first = record
    return first or Record(name, zoo.family(name), cause="no instance was made")


def _examined(
    zoo: Zoo, name: str, specimens: Iterator[Specimen], earlier: Record | None
) -> Record | None:
    """One instance examined; None after the last. Where nothing attends, reading one instance is enough."""
    record = Record(name, zoo.family(name))
    try:
        with _timed(record, "build"):
            specimen = next(specimens, None)
            if specimen is None:
                return None
            enliven(specimen.model)
            record.small = specimen.small
            inputs = _inputs(specimen)
            record.inputs = inputs.describe()
            record.run = _attentions(specimen.model, inputs)
    except Exception as error:
        record.cause = _explain(error)
        return record
    if earlier is not None and earlier.status == NONE and not record.run:
        record.status = NONE
        return record
    try:
        _judge(record, specimen.model, inputs)
    except SurgeryError as error:
        record.status, record.cause = UNREAD, _explain(error)
    except Exception as error:
        record.status, record.cause = UNREAD, f"the reader fell over: {_explain(error)}"
    return record


def _inputs(specimen: Specimen) -> ExampleInputs:
    return example_inputs(specimen.model, specimen.inputs)


def enliven(model: nn.Module) -> None:
    """Constant weights get noise: a zero bias, scale or gate would hide what flows through it.

    Matrices and kernels get as much as keeps the size of what flows; vectors 0.2.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.is_floating_point() or not parameter.numel():
                continue
            if (parameter == parameter.flatten()[:1]).all():
                spread = max(parameter[0].numel(), 25) ** -0.5 if parameter.ndim > 1 else 0.2
                parameter.add_(torch.randn_like(parameter), alpha=spread)


def _attentions(model: nn.Module, inputs: ExampleInputs) -> int:
    call: Callable[[], object] = lambda: model(*inputs.args, **inputs.kwargs)  # noqa: E731
    with unchanged(model):
        return len(watch(call))


def _judge(record: Record, model: nn.Module, inputs: ExampleInputs) -> None:
    with _timed(record, "read"):
        anatomy = surgery.read(model, inputs)
    record.unplaced = [f"{u.what} at {u.where}: {u.why}" for u in anatomy.unplaced]
    with _timed(record, "verify"):
        outcome = surgery.verify(model, anatomy, inputs)
    record.run, record.read, record.idle = outcome.run, outcome.read, outcome.idle
    record.claims = len(outcome.findings)
    record.held = sum(finding.proved for finding in outcome.findings)
    record.mislabelled = [
        f"{f.site} {f.projection.role.short} {f.projection.weight_name} moved "
        f"{'+'.join(f.moved) or 'nothing'} of run {f.event}"
        for f in outcome.refuted
    ]
    record.status, record.cause = _verdict(anatomy, outcome)


def _verdict(anatomy: Anatomy, outcome: Verification) -> tuple[str, str]:
    if outcome.refuted:
        return WRONG, f"{len(outcome.refuted)} of {len(outcome.findings)} claims refuted"
    if outcome.unseen:
        return PARTIAL, f"{len(outcome.unseen)} of {len(outcome.findings)} claims moved nothing"
    if outcome.run - outcome.idle != outcome.read:
        return PARTIAL, f"{outcome.run} attentions ran, {outcome.read} were read"
    attention = [u for u in anatomy.unplaced if u.what != "stacked weights"]
    if attention:
        return PARTIAL, f"unplaced: {attention[0].why}"
    return (PROVED if outcome.run else NONE), ""


def _explain(error: Exception) -> str:
    """What went wrong, and the innermost line it came from."""
    if isinstance(error, SurgeryError):
        return " | ".join(part for part in (error.what, error.where, error.why) if part)[:600]
    last = traceback.extract_tb(error.__traceback__)[-1]
    text = str(error).strip().splitlines()
    file = last.filename.rpartition("site-packages/")[2].removeprefix(f"{RESULTS.parents[1]}/")
    return f"{type(error).__name__}: {text[0] if text else ''} ({file}:{last.lineno})"[:600]


@contextmanager
def _timed(record: Record, part: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        record.seconds[part] = round(time.perf_counter() - started, 2)
