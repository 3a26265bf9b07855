"""What trained beside the adapters, and buffers that moved: from a model, and back from a file."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from surgery.adapter_file import AdapterFile, Tensors
from surgery.anatomy.wrappers import own_name, parameters_of
from surgery.errors import StateError
from surgery.operations.plan import Plan
from surgery.operations.state import Record, persistent_buffers

Values = list[tuple[Tensor, Tensor]]
"""Tensors of the model, each with the value it is to have."""


def trained(model: nn.Module, plan: Plan) -> Tensors:
    """What else the plan trains, by name.

    Raises:
        StateError: If the model has lost some of it.
    """
    lost = plan.absent_from(model)
    if lost is not None:
        raise StateError(
            f"{lost} trains, and is no longer in the model",
            where=lost,
            why="a module was replaced or renamed after surgery.apply",
            remedy="put it back; what is to be replaced or wrapped, replace before surgery.apply",
        )
    parameters = parameters_of(model)
    return {name: parameters[own_name(name)] for name in plan.trained_names}


def values_for(model: nn.Module, file: AdapterFile, plan: Plan) -> Values:
    """What else trained, and buffers that moved, each with its value from the file."""
    renamed: dict[str, str] = {}
    for word in file.plan.train:
        renamed |= _paired(file, word, plan.train.get(word, ()))
    own = trained(model, plan)
    own |= persistent_buffers(model)
    values = file.rest()
    pairs: Values = []
    for theirs in dict.fromkeys((*values, *renamed)):
        name = renamed.get(theirs, theirs)
        have, want = told_shape(values.get(theirs)), told_shape(own.get(name))
        if have != want:
            why = f"{name}: the model has {want}, the file {have}"
            raise file.misfit(why, "build the model with the same head (num_classes=...)")
        pairs.append((own[name], values[theirs]))
    return pairs


def _paired(file: AdapterFile, word: str, ours: tuple[str, ...]) -> dict[str, str]:
    """The names that a word of ``train`` has in the file with those that it has in the model.

    Under other names tensors are told apart by their shapes alone: models define the same parts in other orders.
    """
    theirs = file.plan.train[word]
    if set(theirs) == set(ours):
        return {name: name for name in theirs}
    values = file.rest()
    shapes = [told_shape(values.get(name)) for name in theirs]
    if len(theirs) != len(ours) or len(set(shapes)) < len(shapes):
        raise file.misfit(
            f"what else trained ({word}) has other names here, and several tensors of one shape",
            "load onto a model with the names of the one trained on, or train adapters and head alone",
        )
    return dict(zip(theirs, ours, strict=True))


def unmoved(model: nn.Module, record: Record, rest: Values) -> Values:
    """Buffers that the file does not name, since they had not moved when it was written, as they were before."""
    named = {id(tensor) for tensor, _ in rest}
    return [
        (buffer, record.buffers[name])
        for name, buffer in persistent_buffers(model)
        if id(buffer) not in named and told_shape(record.buffers.get(name)) == told_shape(buffer)
    ]


@torch.no_grad()
def write_values(values: Values) -> None:
    """Give each tensor its value."""
    for tensor, value in values:
        tensor.copy_(value)


def told_shape(tensor: Tensor | None) -> tuple[int, ...] | str:
    """A shape, or that there is none, to be compared and told."""
    return "no such tensor" if tensor is None else tuple(tensor.shape)
