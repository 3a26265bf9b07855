"""Laying a policy on an anatomy: which projection gets which adapter, or why that cannot be."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from os import PathLike
from typing import Any

import policies
from policies.roles import Role
from policies.schema import AdapterSpec, Policy, Selection
from surgery.anatomy.read import read
from surgery.anatomy.types import Access, Anatomy, Projection
from surgery.errors import AnatomyError, CaptureError, PlanError
from surgery.operations.by_name import NOTE, anatomy_by_name, needs_graph
from surgery.operations.checks import access_of, check_disjoint, check_projection, owner_of
from surgery.operations.extras import resolve_train
from surgery.operations.make import make_adapter, trained_numbers
from surgery.operations.plan import Operation, Plan
from surgery.operations.state import plain_model
from torch import nn

Chosen = dict[Projection, AdapterSpec]


def plan(
    model: nn.Module,
    policy: str | PathLike[str] | dict[str, Any] | Policy,
    *,
    anatomy: Anatomy | None = None,
    example_inputs: Any = None,
    **overrides: Any,
) -> Plan:
    """Lay a policy on a model without touching the model.

    Every selection of the policy is asked in order; where two match the same projection, the later one's
    adapter wins, so a policy goes from the general to the particular.

    Args:
        model: A plain model on any device, the meta device included.
        policy: A name, a path to a YAML file, a dict or a ``Policy``.
        anatomy: What ``surgery.read`` gave, if it was read before.
        example_inputs: For the reading, if the model does not tell its inputs itself.
        **overrides: ``rank=``, ``adapter=``, ``alpha=``, ``roles=``, ``depth=``, ``train=``, adapter options.

    Raises:
        PolicyError: The policy is unknown or malformed.
        AnatomyError: The model does not have what the policy asks for, or has it only in some layers.
        PlanError: A projection cannot carry its adapter: rank, ties, dtype, a dead end.
        StateError: The model is wrapped or adapted already.
        CaptureError: The graph cannot be read, and the policy needs it.
    """
    model = plain_model(model)
    wanted = policies.get(policy, **overrides)
    notes: list[str] = []
    if anatomy is None:
        anatomy = _read(model, wanted, example_inputs, notes)
    chosen = _choose(wanted, anatomy, notes)
    operations = _operations(model, _merge_twins(chosen, notes))
    train, train_notes = resolve_train(wanted.train, model, anatomy)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    kind = type(model)
    made = Plan(
        model=f"{kind.__module__}.{kind.__qualname__}",
        policy=wanted,
        operations=operations,
        train=train,
        base_parameters=sum(sizes.values()),
        extra_parameters=sum(sizes[name] for name in {n for names in train.values() for n in names}),
        notes=(*notes, *train_notes, *_precision_notes(model, operations)),
    )
    _check_train(made)
    return made


def _read(model: nn.Module, policy: Policy, inputs: Any, notes: list[str]) -> Anatomy:
    try:
        return read(model, inputs)
    except CaptureError:
        if needs_graph(policy):
            raise
        notes.append(NOTE)
        return anatomy_by_name(model)


def _choose(policy: Policy, anatomy: Anatomy, notes: list[str]) -> Chosen:
    chosen: Chosen = {}
    for selection in policy.select:
        layers = selection.layers(anatomy.depth)
        found = [p for p in anatomy.projections if _selects(selection, layers, p)]
        if not found:
            raise _nothing_matched(policy, selection, anatomy)
        notes += _check_halves(policy, selection, layers, found, anatomy)
        chosen |= {p: selection.adapter or policy.adapter for p in found}
    notes += [f"not placed: {u.what} at {u.where or 'the root'}: {u.why}" for u in anatomy.unplaced]
    return {p: chosen[p] for p in anatomy.projections if p in chosen}


def _selects(selection: Selection, layers: frozenset[int] | None, projection: Projection) -> bool:
    return (
        (not selection.roles or projection.role in selection.roles)
        and (layers is None or projection.layer in layers)
        and (not selection.modules or any(fnmatchcase(projection.module, g) for g in selection.modules))
    )


def _check_halves(
    policy: Policy,
    selection: Selection,
    layers: frozenset[int] | None,
    found: Iterable[Projection],
    anatomy: Anatomy,
) -> Iterator[str]:
    """A role that is nowhere, or missing in one block of many, is an error; outside the blocks a note."""
    missing = [role for role in selection.roles if role not in {p.role for p in found}]
    for role in missing:
        if role is not Role.GATE:
            raise _nothing_matched(policy, selection, anatomy, role)
        yield "mlp.gate: this model has no gated feed-forward"
    wanted = {role for role in selection.roles if role.value.startswith("attention.")} - set(missing)
    for site in anatomy.sites:
        absent = [role for role in wanted if not site.role(role)]
        if not absent or selection.modules or (layers is not None and site.layer not in layers):
            continue
        if site.layer is not None:
            raise AnatomyError(
                f"policy {policy.name!r} asks for {absent[0]}, and {site.id} has none",
                where=site.module,
                why="; ".join(site.notes) or "it was found in other layers, so this one was not understood",
                remedy=f"leave {absent[0]} out (roles=[...]), or the layer (depth=...)",
            )
        yield f"{site.id} ({site.module}) has no {absent[0]}: {'; '.join(site.notes) or 'not adapted'}"


def _nothing_matched(
    policy: Policy, selection: Selection, anatomy: Anatomy, role: Role | None = None
) -> AnatomyError:
    has = Counter(str(p.role) for p in anatomy.projections)
    asked = [str(role)] if role else [str(r) for r in selection.roles] or ["any role"]
    limits = [] if selection.depth == "all" else [f"at depth {selection.depth!r} of {anatomy.depth} layers"]
    limits += [f"in modules {', '.join(selection.modules)}"] if selection.modules else []
    have = ", ".join(f"{name} ({count})" for name, count in has.items()) or "no linear projection"
    unplaced = "".join(f"; not placed: {u.what} at {u.where}: {u.why}" for u in anatomy.unplaced[:3])
    return AnatomyError(
        f"policy {policy.name!r} matches nothing in {anatomy.model.rpartition('.')[2]}",
        why=f"it asks for {', '.join([*asked, *limits])}; the model has {have}{unplaced}",
        remedy="ask for roles the model has (roles=[...]), or take another policy; "
        "print(surgery.read(model)) shows what was found",
    )


def _merge_twins(chosen: Chosen, notes: list[str]) -> Chosen:
    """One adapter where two roles own the very same rows (keys that are also the values)."""
    seen: dict[object, Projection] = {}
    for projection in list(chosen):
        twin = seen.setdefault((projection.weight_name, projection.rows), projection)
        if twin is not projection:
            del chosen[projection]
            notes.append(f"{projection.weight_name} is {twin.role} and {projection.role}: one adapter")
    return chosen


def _operations(model: nn.Module, chosen: Chosen) -> tuple[Operation, ...]:
    by_weight: dict[str, list[Projection]] = defaultdict(list)
    for projection, spec in chosen.items():
        check_projection(model, projection, spec.rank)
        by_weight[projection.weight_name].append(projection)
    access: dict[str, Access] = {}
    for name, group in by_weight.items():
        check_disjoint(group)
        access[name] = access_of(model, group)
    taken: set[str] = set()
    return tuple(
        _operation(projection, spec, access[projection.weight_name], taken)
        for projection, spec in chosen.items()
    )


def _operation(projection: Projection, spec: AdapterSpec, access: Access, taken: set[str]) -> Operation:
    slot, number = projection.role.short, 0
    while f"{projection.weight_name}:{slot}" in taken:
        number += 1
        slot = f"{projection.role.short}_{number}"
    taken.add(f"{projection.weight_name}:{slot}")
    draft = Operation(projection, slot, access, spec, parameters=0)
    adapter = make_adapter(draft, device="meta")
    return Operation(projection, slot, access, spec, parameters=trained_numbers(adapter))


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


def _precision_notes(model: nn.Module, operations: Iterable[Operation]) -> list[str]:
    composed = [o for o in operations if o.access is Access.PARAMETER]
    coarse = [o for o in composed if owner_of(model, o.projection)._parameters is not None]
    return []
