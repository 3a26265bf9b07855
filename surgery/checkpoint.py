"""Adapter files: safetensors with the adapters, what else trained, the plan, and what they sat on.

The keys are those of the adapted model's state dict. The metadata holds the plan and, for every projection,
a hash of the base rows that its adapter was trained on, so that a wrong base is refused, and a renamed or
differently fused model of the same weights is recognised.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from surgery.adapter_file import AdapterFile, Tensors, read_file
from surgery.anatomy.types import Anatomy
from surgery.anatomy.wrappers import unwrap
from surgery.errors import AnatomyError, CaptureError, CheckpointError, PlanError
from surgery.operations import planner
from surgery.operations.adapted import adapted_modules
from surgery.operations.apply import graft
from surgery.operations.checks import check_projection
from surgery.operations.identity import fingerprint, first_difference
from surgery.operations.make import make_adapter
from surgery.operations.plan import Plan
from surgery.operations.state import Record, adapted_model, find_record, plain_model

Model = TypeVar("Model", bound=nn.Module)


def save(model: nn.Module, path: str | os.PathLike[str]) -> Path:
    """Write the adapters, what else trained, and buffers that moved, to a safetensors file.

    The file is there whole or not at all: it is written beside its place and then moved.

    Returns:
        The path.

    Raises:
        StateError: If nothing is applied to the model.
        CheckpointError: If the file cannot be written.
    """
    base, record = adapted_model(model, "save")
    tensors = {key: t.detach().cpu().contiguous() for key, t in _worth_saving(base, record)}
    prints = tuple(fingerprint(base, operation) for operation in record.plan.operations)
    return AdapterFile(Path(path), record.plan, prints, tensors).write()


def load(
    model: Model,
    path: str | os.PathLike[str],
    *,
    anatomy: Anatomy | None = None,
    example_inputs: Any = None,
    base: Literal["refuse", "warn"] = "refuse",
) -> Model:
    """Put the adapters of a file onto a plain model, or into one that carries the same adapters.

    A model of the same class with the same names is taken as it is. On any other the file's policy is laid
    anew, and operations are paired by role, layer and shape: modules may be named, or fused, otherwise.

    Args:
        model: The base model that the adapters were trained on.
        path: What ``save`` wrote.
        anatomy: What ``surgery.read`` gave, if it was read before.
        example_inputs: For the reading, if the model does not tell its inputs itself.
        base: Whether a base with other weights than the one trained on is refused, or only warned of.

    Returns:
        The same model.

    Raises:
        CheckpointError: The file is missing or broken, or was made for another model; the first difference is
            named. The model is untouched.
        PolicyError: The file needs an adapter that is not installed.
        StateError: The model is wrapped.
    """
    target = unwrap(model)
    file = read_file(path)
    record = find_record(target)
    plan = record.plan if record else _plan_for(plain_model(target), file, anatomy, example_inputs)
    difference = first_difference(file.plan, plan)
    if difference is not None:
        raise file.misfit(
            difference, "load onto the model trained on, without other adapters (undo)"
        )
    _check_base(target, file, plan, base)
    _check_adapters(file)
    rest = _rest(target, file, plan)
    pairs = zip(plan.operations, file.plan.operations, strict=True)
    states = {ours.path: file.adapter(theirs) for ours, theirs in pairs}
    if record is None:
        graft(target, plan, lambda operation, adapter, _: _fill(adapter, states[operation.path]))
    else:
        for path_, state in states.items():
            _fill(target.get_submodule(path_), state)
        for _, module in adapted_modules(target):
            module.refresh_base()
    with torch.no_grad():
        for tensor, value in rest:
            tensor.copy_(value)
    return model


def _worth_saving(model: nn.Module, record: Record) -> Iterator[tuple[str, Tensor]]:
    for operation in record.plan.operations:
        yield from (
            model.get_submodule(operation.path).state_dict(prefix=f"{operation.path}.").items()
        )
    parameters = dict(model.named_parameters())
    yield from ((name, parameters[name]) for name in record.plan.trained_names)
    for name, buffer in _persistent_buffers(model):
        before = record.buffers.get(name)
        if before is not None and not torch.equal(before, buffer.cpu()):
            yield name, buffer


def _persistent_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for path, module in model.named_modules():
        for name, buffer in module.named_buffers(path, recurse=False):
            if name.rpartition(".")[2] not in module._non_persistent_buffers_set:
                yield name, buffer


def _plan_for(model: nn.Module, file: AdapterFile, anatomy: Anatomy | None, inputs: Any) -> Plan:
    """The file's own plan on a model of its class and names; else its policy, laid on this model."""
    if _same_names(model, file.plan):
        return file.plan
    try:
        return planner.plan(model, file.plan.policy, anatomy=anatomy, example_inputs=inputs)
    except (AnatomyError, CaptureError, PlanError) as error:
        raise file.misfit(
            f"its policy {file.plan.policy.name!r} cannot be laid on {type(model).__name__}: {error.what}"
            + (f" ({error.why})" if error.why else ""),
            f"load onto a {file.plan.model.rpartition('.')[2]} with the base weights trained on",
        ) from error


def _same_names(model: nn.Module, plan: Plan) -> bool:
    if plan.model != f"{type(model).__module__}.{type(model).__qualname__}":
        return False
    try:
        for operation in plan.operations:
            check_projection(model, operation.projection, operation.adapter.rank)
    except PlanError:
        return False
    return set(plan.trained_names) <= {name for name, _ in model.named_parameters()}


def _check_base(model: nn.Module, file: AdapterFile, plan: Plan, base: str) -> None:
    for expected, operation in zip(file.base, plan.operations, strict=True):
        found = fingerprint(model, operation)
        if found == expected:
            continue
        why = (
            f"{operation.name} is {found[:20]}..., the adapters were trained on {expected[:20]}..."
        )
        if base == "refuse":
            remedy = "load the same base weights in the same dtype first, or pass base='warn'"
            raise file.misfit(f"another base: {why}", remedy)
        warnings.warn(f"adapters loaded onto another base: {why}", stacklevel=3)
        return


def _check_adapters(file: AdapterFile) -> None:
    """Every tensor an adapter needs is there, in its shape."""
    for operation in file.plan.operations:
        needed = make_adapter(operation, "meta").state_dict()
        found = file.adapter(operation)
        for key in needed.keys() | found.keys():
            shapes = [tuple(s[key].shape) if key in s else "nothing" for s in (needed, found)]
            if shapes[0] != shapes[1]:
                why = f"{operation.path}.{key}: the adapter has {shapes[0]}, the file {shapes[1]}"
                raise file.misfit(why, "save the file again with this version of the adapter")


def _rest(model: nn.Module, file: AdapterFile, plan: Plan) -> list[tuple[Tensor, Tensor]]:
    """What else trained, and buffers that moved, each with its value from the file."""
    renamed = {
        theirs: ours
        for word, names in file.plan.train.items()
        for theirs, ours in zip(names, plan.train[word], strict=True)
    }
    own = dict(model.named_parameters()) | dict(_persistent_buffers(model))
    found: list[tuple[Tensor, Tensor]] = []
    for key, value in file.rest().items():
        name = renamed.get(key, key)
        if name not in own or own[name].shape != value.shape:
            have = tuple(own[name].shape) if name in own else "nothing"
            why = f"{name}: the model has {have}, the file {tuple(value.shape)}"
            raise file.misfit(why, "build the model with the same head (num_classes=...)")
        found.append((own[name], value))
    missing = next((name for name in file.plan.trained_names if name not in file.tensors), None)
    if missing is not None:
        raise file.misfit(
            f"{missing} trained, and is not in it", "copy the file again: it is incomplete"
        )
    return found


def _fill(adapter: nn.Module, state: Tensors) -> None:
    adapter.load_state_dict(state)
