"""Which projections a policy selects, and the errors that say what it asked for in vain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase

from policies.roles import Role
from policies import AdapterSpec, Policy, Selection
from surgery.anatomy.types import Anatomy, Projection
from surgery.errors import AnatomyError

Chosen = dict[Projection, AdapterSpec]


def choose(policy: Policy, anatomy: Anatomy, notes: list[str]) -> Chosen:
    """The adapter of every selected projection, in the order of the anatomy.

    Where two selections match the same projection, the later one's adapter wins.

    Args:
        policy: What is asked for.
        anatomy: What the model has.
        notes: Receives what a reader should know.

    Raises:
        AnatomyError: A selection or one of its roles matches nothing, or a role is missing in one block.
    """
    chosen: Chosen = {}
    for selection in policy.select:
        layers = selection.layers(anatomy.depth)
        found = [p for p in anatomy.projections if _selects(selection, layers, p)]
        if not found:
            raise _nothing_matched(policy, selection, anatomy)
        notes += _check_halves(policy, selection, layers, found, anatomy)
        chosen |= {p: policy.adapter_of(selection) for p in found}
    notes += [f"not placed: {u.what} at {u.where or 'the root'}: {u.why}" for u in anatomy.unplaced]
    return _merge_twins({p: chosen[p] for p in anatomy.projections if p in chosen}, notes)


def _selects(selection: Selection, layers: frozenset[int] | None, projection: Projection) -> bool:
    return (
        (not selection.roles or projection.role in selection.roles)
        and (layers is None or projection.layer in layers)
        and (
            not selection.modules
            or any(fnmatchcase(projection.module, g) for g in selection.modules)
        )
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
    wanted = {role for role in selection.roles if role.value.startswith("attention.")} - set(
        missing
    )
    for site in anatomy.sites:
        absent = [role for role in wanted if not site.role(role)]
        if not absent or selection.modules or (layers is not None and site.layer not in layers):
            continue
        if site.layer is not None:
            raise AnatomyError(
                f"policy {policy.name!r} asks for {absent[0]}, and {site.id} has none",
                where=site.module,
                why="; ".join(site.notes)
                or "it was found in other layers, so this one was not understood",
                remedy=f"leave {absent[0]} out (roles=[...]), or the layer (depth=...)",
            )
        yield f"{site.id} ({site.module}) has no {absent[0]}: {'; '.join(site.notes) or 'not adapted'}"


def _nothing_matched(
    policy: Policy, selection: Selection, anatomy: Anatomy, role: Role | None = None
) -> AnatomyError:
    has = Counter(str(p.role) for p in anatomy.projections)
    asked = [str(role)] if role else [str(r) for r in selection.roles] or ["any role"]
    limits = (
        []
        if selection.depth == "all"
        else [f"at depth {selection.depth!r} of {anatomy.depth} layers"]
    )
    limits += [f"in modules {', '.join(selection.modules)}"] if selection.modules else []
    have = ", ".join(f"{name} ({count})" for name, count in has.items()) or "no linear projection"
    unplaced = "".join(
        f"; not placed: {u.what} at {u.where}: {u.why}" for u in anatomy.unplaced[:3]
    )
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
            notes.append(
                f"{projection.weight_name} is {twin.role} and {projection.role}: one adapter"
            )
    return chosen
