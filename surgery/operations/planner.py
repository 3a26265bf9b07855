"""Laying a policy on an anatomy: which projection gets which adapter, or why that cannot be."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from torch import nn

import policies
from policies import Policy, PolicyLike
from surgery.anatomy.read import read
from surgery.anatomy.types import Access, Anatomy, Projection
from surgery.errors import CaptureError, PlanError
from surgery.operations.budget import parameters_of, uniform_rank
from surgery.operations.by_name import NOTE, anatomy_by_name, needs_graph
from surgery.operations.checks import access_of, check_disjoint, check_projection, weight_of
from surgery.operations.choose import Chosen, choose
from surgery.operations.extras import resolve_train
from surgery.operations.plan import Operation, Plan
from surgery.operations.state import plain_model


def plan(
    model: nn.Module,
    policy: PolicyLike,
    *,
    anatomy: Anatomy | None = None,
    example_inputs: Any = None,
    **overrides: Any,
) -> Plan:
    """Lay a policy on a model without touching the model.

    Every selection of the policy is asked in order; where two match the same projection, the later
    one's adapter wins, so a policy goes from the general to the particular.

    Args:
        model: A plain model on any device, the meta device included.
        policy: A name, a path to a YAML file, a mapping or a ``Policy``.
        anatomy: What ``surgery.read`` gave, if it was read before.
        example_inputs: For the reading, if the model does not tell its inputs itself.
        **overrides: ``rank=`` or ``budget=``, ``adapter=``, ``alpha=``, ``roles=``, ``part=``,
            ``depth=``, ``train=``, adapter options.

    Raises:
        PolicyError: The policy is unknown or malformed.
        AnatomyError: The model does not have what the policy asks for, or has it only in some
            layers.
        PlanError: A projection cannot carry its adapter (rank, ties, dtype, a dead end), or
            nothing at all would train.
        StateError: The model is wrapped or adapted already.
        CaptureError: The graph cannot be read, and the policy needs it.
    """
    model = plain_model(model)
    wanted = policies.get(policy, **overrides)
    notes: list[str] = []
    if anatomy is None:
        anatomy = _read(model, wanted, example_inputs, notes)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    chosen = choose(wanted, anatomy, notes)
    if wanted.budget and chosen:
        rank = uniform_rank(wanted, chosen, sum(sizes.values()), notes)
        chosen = {p: spec.model_copy(update={"rank": rank}) for p, spec in chosen.items()}
        wanted = policies.get(wanted, rank=rank)  # the file of an adapter needs no budget again
    operations = _operations(model, chosen, anatomy)
    train, train_notes = resolve_train(wanted.train, model, anatomy)
    kind = type(model)
    made = Plan(
        model=f"{kind.__module__}.{kind.__qualname__}",
        policy=wanted,
        operations=operations,
        train=train,
        base_parameters=sum(sizes.values()),
        extra_parameters=sum(sizes[n] for n in {n for names in train.values() for n in names}),
        notes=(*notes, *train_notes, *_composed_notes(model, operations)),
    )
    _check_train(made)
    _check_trainable(made)
    return made


def _read(model: nn.Module, policy: Policy, inputs: Any, notes: list[str]) -> Anatomy:
    try:
        return read(model, inputs)
    except CaptureError:
        if needs_graph(policy):
            raise
        notes.append(NOTE)
        return anatomy_by_name(model)


def _operations(model: nn.Module, chosen: Chosen, anatomy: Anatomy) -> tuple[Operation, ...]:
    chosen_on: dict[int, list[Projection]] = defaultdict(list)
    for projection, spec in chosen.items():
        weight = check_projection(model, projection, spec.rank)
        chosen_on[id(weight)].append(projection)
    for group in chosen_on.values():
        check_disjoint(group)
    read_as: dict[str, list[Projection]] = defaultdict(list)
    for projection in anatomy.projections:
        read_as[projection.weight_name].append(projection)
    access = {name: access_of(model, read_as[name]) for name in {p.weight_name for p in chosen}}
    taken: set[str] = set()
    numbers: dict[tuple[int, int, int], int] = {}  # by shape and adapter: most layers are alike
    operations = []
    for projection, spec in chosen.items():
        alike = projection.in_features, projection.out_features, id(spec)
        if alike not in numbers:
            numbers[alike] = parameters_of(projection, spec)
        slot = _slot(projection, taken)
        way = access[projection.weight_name]
        operations.append(Operation(projection, slot, way, spec, numbers[alike]))
    return tuple(operations)


def _slot(projection: Projection, taken: set[str]) -> str:
    """A name for the adapter among those on its weight: its role, numbered where that is taken."""
    slot, number = projection.role.short, 0
    while f"{projection.weight_name}:{slot}" in taken:
        number += 1
        slot = f"{projection.role.short}_{number}"
    taken.add(f"{projection.weight_name}:{slot}")
    return slot


def _check_train(made: Plan) -> None:
    """A weight either trains or carries adapters."""
    weights = {operation.projection.weight_name for operation in made.operations}
    for word, names in made.train.items():
        both = next((name for name in names if name in weights), None)
        if both is not None:
            raise PlanError(
                f"{both} would train and carry an adapter at once",
                where=both,
                why=f"train: {word!r} names it, and a selection of policy {made.policy.name!r} too",
                remedy=f"take {word!r} out of train, or its role out of the selection",
            )


def _check_trainable(made: Plan) -> None:
    if not made.trainable:
        raise PlanError(
            f"under policy {made.policy.name!r} nothing of {made.model} would train",
            why="; ".join(made.notes) or "it selects no projection and names nothing to train",
            remedy="choose a policy with adapters, or name the parameters: train=['lm_head.*']",
        )


def _composed_notes(model: nn.Module, operations: Iterable[Operation]) -> list[str]:
    """What training through the weight itself costs."""
    composed = [o for o in operations if o.access is Access.PARAMETER]
    dtypes = {o.projection.weight_name: weight_of(model, o.projection).dtype for o in composed}
    coarse = Counter(str(dtype) for dtype in dtypes.values() if dtype.itemsize < 4)
    notes = [
        f"{count} weights are read without their module and are {dtype}: base + delta is rounded "
        "to that in every forward, so small updates are lost; train such a model in float32"
        for dtype, count in coarse.items()
    ]
    if any(o.adapter.options.get("dropout") for o in composed):
        notes.append("dropout acts on inputs: it does nothing where adapters act on the weight")
    return notes
