"""Adapter files: safetensors with the adapters, what else trained, the plan, and what they sat on.

The keys are those of the adapted model's state dict. The metadata holds the plan and, for every
projection, a hash of the base rows that its adapter was trained on, so that a wrong base is
refused, and a renamed or differently fused model of the same weights is recognised.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from surgery.adapter_file import AdapterFile, Tensors, read_file
from surgery.adapters.base import Adapter
from surgery.also_trained import Values, told_shape, trained, unmoved, values_for, write_values
from surgery.anatomy.types import Anatomy
from surgery.anatomy.wrappers import unwrap
from surgery.errors import AnatomyError, CaptureError, CheckpointError, PlanError
from surgery.operations import planner
from surgery.operations.adapted import adapted_modules
from surgery.operations.apply import graft
from surgery.operations.averaging import keep_up
from surgery.operations.checks import check_operations
from surgery.operations.identity import fingerprint, first_difference
from surgery.operations.make import Start, make_adapter
from surgery.operations.plan import Operation, Plan
from surgery.operations.rollback import tensors_or_nothing
from surgery.operations.state import Record, adapted_model, find_record, plain_model
from surgery.operations.undo import undo

Model = TypeVar("Model", bound=nn.Module)
Base = Literal["refuse", "warn"]


def save(model: nn.Module, path: str | os.PathLike[str]) -> Path:
    """Write the adapters, what else trained, and buffers that moved, to a safetensors file.

    The file is there whole or not at all: it is written beside its place and then moved.

    Returns:
        The path.

    Raises:
        StateError: If nothing is applied to the model, or it is an average that did not follow a recomposition.
        CheckpointError: If the file cannot be written.
    """
    base, record = adapted_model(model, "save")
    keep_up(base)
    tensors = {
        key: t.detach().cpu().clone(memory_format=torch.contiguous_format)  # views share storage
        for key, t in _worth_saving(base, record)
    }
    prints = tuple(fingerprint(base, operation) for operation in record.plan.operations)
    return AdapterFile(Path(path), record.plan, prints, tensors).write()


def load(
    model: Model,
    path: str | os.PathLike[str],
    *,
    anatomy: Anatomy | None = None,
    example_inputs: Any = None,
    base: Base = "refuse",
) -> Model:
    """Put the adapters of a file onto a plain model, or into one that carries the same adapters.

    A model of the same class with the same names is taken as it is. On any other the file's policy
    is laid anew, and operations are paired by role, layer and shape: modules may be named, or
    fused, otherwise.

    Args:
        model: The base model that the adapters were trained on.
        path: What ``save`` wrote.
        anatomy: What ``surgery.read`` gave, if it was read before.
        example_inputs: For the reading, if the model does not tell its inputs itself.
        base: Whether a base with other weights than the one trained on is refused, or only warned
            of.

    Returns:
        The same model.

    Raises:
        CheckpointError: The file is missing or broken, or was made for another model; the first
            difference is named. The model is untouched.
        PolicyError: The file needs an adapter that is not installed.
        StateError: The model is wrapped.
    """
    if base not in get_args(Base):
        raise CheckpointError(
            f"unknown base {base!r}", remedy=f"choose one of {', '.join(get_args(Base))}"
        )
    target = unwrap(model)
    file = read_file(path)
    record = find_record(target)
    plan = record.plan if record else _plan_for(plain_model(target), file, anatomy, example_inputs)
    states = _adapters(file, plan)
    rest = values_for(target, file, plan)
    _check_base(target, file, plan, base)
    if record is None:
        _graft(target, plan, states, rest)
    else:
        _refill(target, states, rest + unmoved(target, record, rest))
    return model


def _worth_saving(model: nn.Module, record: Record) -> Iterator[tuple[str, Tensor]]:
    for operation in record.plan.operations:
        adapter = model.get_submodule(operation.path)
        yield from adapter.state_dict(prefix=f"{operation.path}.").items()
    yield from trained(model, record.plan).items()
    yield from record.moved(model).items()


def _plan_for(model: nn.Module, file: AdapterFile, anatomy: Anatomy | None, inputs: Any) -> Plan:
    """The file's plan on a model of its class and names; else its policy, laid on this model."""
    if _same_names(model, file.plan):
        return file.plan
    try:
        return planner.plan(model, file.plan.policy, anatomy=anatomy, example_inputs=inputs)
    except (AnatomyError, CaptureError, PlanError) as error:
        raise file.misfit(
            f"its policy {file.plan.policy.name!r} cannot be laid on {type(model).__name__}: "
            + "; ".join(filter(None, (error.what, error.why))),
            f"load onto a {file.plan.model.rpartition('.')[2]} with the base weights trained on",
        ) from error


def _same_names(model: nn.Module, plan: Plan) -> bool:
    if plan.model != f"{type(model).__module__}.{type(model).__qualname__}":
        return False
    try:
        check_operations(model, plan.operations)
    except PlanError:
        return False
    return plan.absent_from(model) is None


def _adapters(file: AdapterFile, plan: Plan) -> dict[str, Tensors]:
    """The state of each adapter of ``plan``, by its path; every tensor is there, in its shape."""
    difference = first_difference(file.plan, plan)
    if difference is not None:
        remedy = "load onto the model trained on; if it carries other adapters, undo them first"
        raise file.misfit(difference, remedy)
    states: dict[str, Tensors] = {}
    for ours, theirs in zip(plan.operations, file.plan.operations, strict=True):
        needed = make_adapter(theirs, "meta").state_dict()
        found = states[ours.path] = file.adapter(theirs)
        for key in dict.fromkeys((*needed, *found)):
            have, want = told_shape(found.get(key)), told_shape(needed.get(key))
            if have != want:
                why = f"{theirs.path}.{key}: the adapter has {want}, the file {have}"
                raise file.misfit(why, "save the file again with this version of the adapter")
    return states


def _check_base(model: nn.Module, file: AdapterFile, plan: Plan, base: str) -> None:
    for expected, operation in zip(file.base, plan.operations, strict=True):
        found = fingerprint(model, operation)
        if found == expected:
            continue
        why = f"{operation.name} is {found[:20]}…, the adapters were trained on {expected[:20]}…"
        if base == "refuse":
            remedy = "load the same base weights in the same dtype first, or pass base='warn'"
            raise file.misfit(f"another base: {why}", remedy)
        warnings.warn(f"adapters loaded onto another base: {why}", stacklevel=3)
        return


def _start_from(states: dict[str, Tensors]) -> Start:
    def start(operation: Operation, adapter: Adapter, rows: Tensor) -> None:
        adapter.read_base(rows)  # what follows from the base is not in the state
        adapter.load_state_dict(states[operation.path])

    return start


def _graft(model: nn.Module, plan: Plan, states: dict[str, Tensors], rest: Values) -> None:
    graft(model, plan, _start_from(states))
    try:
        write_values(rest)
    except BaseException:
        undo(model)
        raise


def _refill(model: nn.Module, states: dict[str, Tensors], rest: Values) -> None:
    adapters = [model.get_submodule(path) for path in states]
    owners = [module for _, module in adapted_modules(model)]
    written = [t for a in adapters for t in a.state_dict(keep_vars=True).values()]
    with tensors_or_nothing([*written, *(tensor for tensor, _ in rest)], owners):
        for adapter, state in zip(adapters, states.values(), strict=True):
            adapter.load_state_dict(state)
        for owner in owners:
            owner.refresh_base()
        write_values(rest)
