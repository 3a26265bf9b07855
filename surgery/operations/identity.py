"""Telling whether two plans, and two bases, are the same but for names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from surgery.anatomy.types import Projection
from surgery.operations.adapted import Adapted
from surgery.operations.checks import owner_of
from surgery.operations.plan import Operation, Plan
from surgery.operations.rows import as_matrix, take


def fingerprint(model: nn.Module, operation: Operation) -> str:
    """Dtype and sha256 of the base rows of an operation, as ``(out, in)``: ``float32:9f86d0...``.

    Neither names nor layout enter, so a fused and a split projection of the same weights agree. The
    rows are those of the original weight, also on an adapted model.
    """
    projection = operation.projection
    owner = owner_of(model, projection)
    return fingerprint_of(_original(owner, projection.parameter), projection)


def fingerprint_of(weight: Tensor, projection: Projection) -> str:
    """The same of a weight that is in no model, in its own layout."""
    rows = take(as_matrix(weight, projection.layout), projection.rows)
    return f"{str(rows.dtype).removeprefix('torch.')}:{digest(rows)}"


def digest(tensor: Tensor) -> str:
    """sha256 of the values, in the order of the dimensions."""
    return hashlib.sha256(tensor.cpu().flatten().view(torch.uint8).numpy().data).hexdigest()


def combined(prints: Iterable[str]) -> str:
    """One sha256 for several fingerprints, in order: ``surgery info`` shows it as the base."""
    return hashlib.sha256("\n".join(prints).encode()).hexdigest()


def first_difference(one: Plan, other: Plan) -> str | None:
    """What keeps two plans from being the same operations in order, names apart, or None."""
    for a, b in zip(one.operations, other.operations, strict=False):
        if _structure(a) != _structure(b):
            return f"{_describe(a)} against {_describe(b)}"
    if len(one.operations) != len(other.operations):
        return f"{len(one.operations)} adapters against {len(other.operations)}"
    for word in one.train.keys() | other.train.keys():
        ours, theirs = one.train.get(word, ()), other.train.get(word, ())
        if len(ours) != len(theirs):
            return f"train: {word}: {len(ours)} parameters against {len(theirs)}"
    return None


def _structure(operation: Operation) -> tuple[object, ...]:
    p = operation.projection
    return p.role, p.layer, p.in_features, p.out_features, operation.adapter


def _describe(operation: Operation) -> str:
    p, spec = operation.projection, operation.adapter
    layer = "" if p.layer is None else f" of layer {p.layer}"
    return (
        f"{p.role}{layer} ({operation.name}), {p.in_features} -> {p.out_features}, "
        f"{spec.kind} of rank {spec.rank}"
    )


def _original(owner: nn.Module, name: str) -> Tensor:
    if isinstance(owner, Adapted) and name in dict(owner.grafts()):
        return owner.original(name)
    weight = owner._parameters[name]
    assert weight is not None
    return weight.detach()
