"""What an adapted model remembers: the plan, and what undo needs besides the base weights."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from surgery.anatomy.wrappers import (
    buffers_of,
    own_name,
    parameters_of,
    refuse_inference_tensors,
    unwrap,
)
from surgery.errors import StateError
from surgery.operations.adapted import adapted_modules, strip
from surgery.operations.averaging import detach
from surgery.operations.plan import Plan

_KEY = "_surgery"
_LOG = logging.getLogger(__name__)


@dataclass
class Record:
    """Kept in ``model.__dict__``, so it is copied and pickled with the model.

    Attributes:
        plan: What was done.
        requires_grad: The flag of every parameter before, by its own name, as everything here.
        parameters: What else trains, as it was, on the CPU.
        buffers: Every buffer as it was, on the CPU: running statistics move in training.
    """

    plan: Plan
    requires_grad: dict[str, bool]
    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]

    @classmethod
    def of(cls, model: nn.Module, plan: Plan) -> Record:
        """Photograph a plain model."""
        trained = set(map(own_name, plan.trained_names))
        parameters = parameters_of(model)
        return cls(
            plan=plan,
            requires_grad={name: p.requires_grad for name, p in parameters.items()},
            parameters={name: _copy(p) for name, p in parameters.items() if name in trained},
            buffers={name: _copy(buffer) for name, buffer in buffers_of(model).items()},
        )

    def moved(self, model: nn.Module) -> dict[str, Tensor]:
        """Buffers that a state dict holds and that are not what they were, by their own names."""
        return {
            name: buffer
            for name, buffer in persistent_buffers(model)
            if name in self.buffers and not torch.equal(self.buffers[name], buffer.cpu())
        }


def persistent_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The buffers that a state dict holds, by their own names."""
    for path, module in model.named_modules():
        for name, buffer in module.named_buffers(path, recurse=False):
            if name.rpartition(".")[2] not in module._non_persistent_buffers_set:
                yield own_name(name), buffer


def remember(model: nn.Module, record: Record) -> None:
    """Keep the record with the model."""
    model.__dict__[_KEY] = record


def forget(model: nn.Module) -> None:
    """Drop the record, if there is one."""
    model.__dict__.pop(_KEY, None)


def find_record(model: nn.Module) -> Record | None:
    """The record of an adapted model, or None."""
    record = model.__dict__.get(_KEY)
    return record if isinstance(record, Record) else None


def plain_model(model: nn.Module) -> nn.Module:
    """The model itself, unwrapped from torch.compile, if nothing is applied to it yet.

    Raises:
        StateError: If it is wrapped (DDP, FSDP, PEFT), it or a part of it is adapted, or it was made under
            ``torch.inference_mode``.
    """
    model = unwrap(model)
    refuse_inference_tensors(model)
    foreign = next((m for m in model.modules() if type(m).__module__.startswith("peft.")), None)
    if foreign is not None:
        raise StateError(
            f"{type(model).__name__} carries PEFT layers ({type(foreign).__name__})",
            remedy="merge or unload them first, or start from the plain base model",
        )
    adapted = next(adapted_modules(model), None)
    if adapted is not None or _KEY in model.__dict__:
        raise StateError(
            f"{type(model).__name__} is adapted already",
            where=adapted[0] if adapted else None,
            why="adapters on top of adapters could not be folded or undone one by one",
            remedy="call surgery.fold(model) or surgery.undo(model) first",
        )
    return model


def adapted_model(model: nn.Module, purpose: str) -> tuple[nn.Module, Record]:
    """The model, unwrapped from torch.compile, with the record of what was applied to it.

    Args:
        model: What the caller was given.
        purpose: The name of the operation, for the message: ``fold``.

    Raises:
        StateError: If nothing is applied to it, or only to a part of it.
    """
    inner = getattr(model, "module", None)
    if isinstance(inner, nn.Module) and find_record(inner) is not None:
        what, remedy = f"the model is wrapped in {type(model).__name__}", "the adapted one inside"
        raise StateError(what, remedy=f"pass {remedy}: surgery.{purpose}(model.module)")
    model = unwrap(model)
    record = find_record(model)
    if record is not None:
        return model, record
    what = f"nothing to {purpose}: no policy is applied to this {type(model).__name__}"
    part = next((path for path, m in model.named_modules() if _KEY in m.__dict__), None)
    if part is not None:
        why, remedy = "it was applied to this part", f"call surgery.{purpose}(model.{part})"
        raise StateError(what, where=part, why=why, remedy=remedy)
    raise StateError(what, remedy="call surgery.apply(model, policy) first")


@torch.no_grad()
def restore(model: nn.Module, record: Record) -> None:
    """Put back every bit: weights from their originals, classes, flags, what trained, buffers.

    A parameter that the user has replaced since by one of another shape or name (a new head) is the user's.
    The record goes last: if anything fails before, undo can be called again.
    """
    parameters = parameters_of(model)
    for name in record.parameters.keys() - parameters.keys():
        _LOG.warning("%s is no longer in the model: it is not put back", name)
    for name, parameter in parameters.items():
        original = record.parameters.get(name, parameter).to(parameter)
        if original.shape == parameter.shape and not _same_bits(original, parameter):
            parameter.copy_(original)
            parameter.grad = None
    for name, buffer in buffers_of(model).items():
        saved = record.buffers.get(name, buffer).to(buffer)
        if not _same_bits(saved, buffer):
            buffer.data = saved
    for _, module in adapted_modules(model):
        for name, graft in module.grafts():
            if graft.original is not None:
                module.base(name).copy_(graft.original)
    release(model, record)


def release(model: nn.Module, record: Record) -> None:
    """Give every module its plain class and every parameter its flag back; weights stay."""
    for _, module in list(adapted_modules(model)):
        strip(module)
    detach(model)
    for name, parameter in parameters_of(model).items():
        parameter.requires_grad_(record.requires_grad.get(name, parameter.requires_grad))
    forget(model)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Stricter than ``torch.equal``, for which -0.0 equals 0.0 and NaN nothing."""
    return one.shape == other.shape and torch.equal(_bytes(one), _bytes(other))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().flatten().contiguous().view(torch.uint8)
