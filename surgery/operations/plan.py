"""A policy laid on an anatomy: the exact list of operations, printable before anything is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import TypeAdapter
from rich.console import Group
from torch import nn

from policies import AdapterSpec, Policy
from surgery.anatomy.render import as_text
from surgery.anatomy.types import Access, Projection
from surgery.anatomy.wrappers import own_name, parameters_of
from surgery.operations import render


@dataclass(frozen=True)
class Operation:
    """One adapter on one projection.

    Attributes:
        projection: Where it goes.
        slot: Its name among the adapters of the same weight: ``query``, ``value``, ...
        access: ``module`` adds to the output of the owner; ``parameter`` gives every reader of the
            weight base + delta. A weight has one access, and ``parameter`` is right for every
            reader.
        adapter: Kind, rank and options.
        parameters: How many numbers it trains.
    """

    projection: Projection
    slot: str
    access: Access
    adapter: AdapterSpec
    parameters: int

    @property
    def name(self) -> str:
        """Weight and slot, ``blocks.0.attn.qkv.weight:query``."""
        return f"{self.projection.weight_name}:{self.slot}"

    @property
    def path(self) -> str:
        """State-dict prefix of the adapter, ``blocks.0.attn.qkv.adapters.weight.query``."""
        parts = (self.projection.module, "adapters", self.projection.parameter, self.slot)
        return ".".join(filter(None, parts))


@dataclass(frozen=True)
class Plan:
    """What ``apply`` will do, and nothing else.

    Attributes:
        model: Qualified class name of the model it was made for.
        policy: The policy, overrides included.
        operations: The adapters, in the order of the anatomy.
        train: What else trains: parameter names by the word or glob of the policy that asked for
            them.
        base_parameters: Numbers in the plain model.
        extra_parameters: Numbers in what else trains.
        notes: What a reader should know before applying.
    """

    model: str
    policy: Policy
    operations: tuple[Operation, ...]
    train: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    base_parameters: int = 0
    extra_parameters: int = 0
    notes: tuple[str, ...] = ()

    @property
    def trained_names(self) -> tuple[str, ...]:
        """Every parameter of the plain model that trains, once."""
        return tuple(dict.fromkeys(name for names in self.train.values() for name in names))

    def absent_from(self, model: nn.Module) -> str | None:
        """The first parameter that would train and that the model, wrapped or not, lacks."""
        there = parameters_of(model)
        return next((name for name in self.trained_names if own_name(name) not in there), None)

    @property
    def adapter_parameters(self) -> int:
        """Numbers that the adapters train."""
        return sum(operation.parameters for operation in self.operations)

    @property
    def trainable(self) -> int:
        """Numbers that train altogether."""
        return self.adapter_parameters + self.extra_parameters

    @property
    def share(self) -> float:
        """Trainable numbers over all numbers of the adapted model."""
        return self.trainable / max(self.base_parameters + self.adapter_parameters, 1)

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data; the keys are stable.

        ``{"model", "policy": {...}, "operations": [{"projection": {...}, "slot", "access",
        "adapter": {...}, "parameters"}], "train": {word: [names]}, "base_parameters",
        "extra_parameters", "adapter_parameters", "trainable", "share", "notes"}``; a projection as
        in ``Anatomy.to_dict``.
        """
        plain = {
            "model": self.model,
            "policy": self.policy.model_dump(mode="json"),
            "operations": [_operation_dict(operation) for operation in self.operations],
            "train": {word: list(names) for word, names in self.train.items()},
            "notes": list(self.notes),
        }
        counts = ("base_parameters", "extra_parameters", "adapter_parameters", "trainable", "share")
        return plain | {name: getattr(self, name) for name in counts}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Plan:
        """The plan that ``to_dict`` wrote.

        Raises:
            ValueError: If ``plain`` is something else.
        """
        return _SCHEMA.validate_python(plain)

    def __rich__(self) -> Group:
        return render.plan_table(self)

    def __str__(self) -> str:
        return as_text(self)


def _operation_dict(operation: Operation) -> dict[str, Any]:
    projection = asdict(operation.projection)
    for key in ("role", "layout", "access"):
        projection[key] = str(projection[key])
    projection["rows"] = [list(run) for run in operation.projection.rows]
    for key in ("tied_to", "parts"):
        projection[key] = list(projection[key])
    return {
        "projection": projection,
        "slot": operation.slot,
        "access": str(operation.access),
        "adapter": operation.adapter.model_dump(mode="json"),
        "parameters": operation.parameters,
    }


_SCHEMA = TypeAdapter(Plan)
