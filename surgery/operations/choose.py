"""Which projections a policy selects, and the errors that say what it asked for in vain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

from policies import AdapterSpec, Policy, Selection
from policies.roles import Role
from surgery.anatomy.types import Anatomy, AttentionSite, Projection
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
        AnatomyError: A selection, or one of its roles, matches nothing; or a role is missing in
            one layer of many.
    """
    chosen: Chosen = {}
    for selection in policy.select:
        asked = Asked(policy, selection, anatomy)
        notes += asked.halves()
        chosen |= {projection: asked.adapter(projection) for projection in asked.found}
    notes += [f"not placed: {u.what} at {u.where or 'the root'}: {u.why}" for u in anatomy.unplaced]
    return _merge_twins({p: chosen[p] for p in anatomy.projections if p in chosen}, notes)


@dataclass(frozen=True)
class Asked:
    """One selection of a policy, laid on an anatomy."""

    policy: Policy
    selection: Selection
    anatomy: Anatomy

    @cached_property
    def found(self) -> tuple[Projection, ...]:
        """What it selects."""
        return tuple(p for p in self.anatomy.projections if self._selects(p))

    def adapter(self, projection: Projection) -> AdapterSpec:
        """The adapter that a selected projection gets, its rank by depth settled.

        Raises:
            AnatomyError: If the selection has ranks by depth, and none for this layer.
        """
        spec = self.policy.adapter_of(self.selection)
        if self.selection.rank is None:
            return spec
        layer = self._layers.get(projection.layer)
        rank = self.selection.rank_at(layer, len(self._layers))
        if rank is None:
            raise AnatomyError(
                f"policy {self.policy.name!r} has no rank for {projection.role} of layer {layer}",
                where=projection.weight_name,
                why=f"its ranks are for {', '.join(self.selection.rank)} of {len(self._layers)} layers",
                remedy="begin with one for the rest: rank: {all: 8, ...}; later depths win",
            )
        return spec.model_copy(update={"rank": rank})

    def halves(self) -> Iterator[str]:
        """Refuse half a match: a role that is nowhere, or missing in one layer of many.

        Yields:
            Notes on what is missing and may be: gates, and attention outside the layers.

        Raises:
            AnatomyError: It names the role, the policy, and what the model has.
        """
        roles = {projection.role for projection in self.found}
        missing = [role for role in self.selection.roles if role not in roles]
        if not self.found:
            raise self._nothing(self.selection.roles)
        if set(missing) - {Role.GATE}:
            raise self._nothing(missing)
        if missing:
            yield "mlp.gate: this model has no gated feed-forward"
        for site in self.anatomy.sites:
            absent = [role for role in roles & set(_ATTENTION) if not site.role(role)]
            inside = not self.selection.part or any(map(self._in_part, site.projections))
            inside = inside and self._in_layers(site.layer)
            if absent and inside and not self.selection.modules:
                yield self._incomplete(site, min(absent))

    def _selects(self, projection: Projection) -> bool:
        roles, globs = self.selection.roles, self.selection.modules
        return (
            (not roles or projection.role in roles)
            and self._in_part(projection)
            and self._in_layers(projection.layer)
            and (not globs or any(fnmatchcase(projection.module, glob) for glob in globs))
        )

    def _in_part(self, projection: Projection) -> bool:
        return self.selection.part is None or self.selection.part in projection.parts

    def _in_layers(self, layer: int | None) -> bool:
        layers = self.selection.layers(len(self._layers))
        return layers is None or self._layers.get(layer) in layers

    @cached_property
    def _layers(self) -> dict[int | None, int]:
        """The layers that depth counts, each with its number: those of the model, or of the part."""
        if self.selection.part is None:
            return {layer: layer for layer in range(self.anatomy.depth)}
        inside = {p.layer for p in self.anatomy.projections if self._in_part(p)}
        return {layer: n for n, layer in enumerate(sorted(inside - {None}, key=_number))}

    def _incomplete(self, site: AttentionSite, role: Role) -> str:
        reason = "; ".join(site.notes)
        if site.layer is None:
            return f"{site.id} ({site.module}) has no {role}: {reason or 'it is not adapted'}"
        raise AnatomyError(
            f"policy {self.policy.name!r} asks for {role}, and {site.id} has none",
            where=site.module,
            why=reason or "other layers have it, so this one was not understood",
            remedy=f"leave out {role} (roles=[...]) or the layer (depth=...)",
        )

    def _nothing(self, roles: tuple[Role, ...] | list[Role]) -> AnatomyError:
        asked = [str(role) for role in roles] or ["any role"]
        if self.selection.part:
            asked.append(f"in part {self.selection.part.value!r}")
        if self.selection.depth != "all":
            asked.append(f"at depth {self.selection.depth!r} of {len(self._layers)} layers")
        if self.selection.modules:
            asked.append(f"in modules {', '.join(self.selection.modules)}")
        counts = Counter(str(p.role) for p in self.anatomy.projections)
        have = [f"{role} ({count})" for role, count in counts.items()] or ["no linear projection"]
        if self.selection.part:
            parts = dict.fromkeys(part for p in self.anatomy.projections for part in p.parts)
            have.append(f"the parts {', '.join(parts)}" if parts else "no parts: it is one piece")
        have += [f"and not placed: {u.what}, {u.why}" for u in self.anatomy.unplaced[:3]]
        model = self.anatomy.model.rpartition(".")[2]
        return AnatomyError(
            f"policy {self.policy.name!r} matches nothing in {model}",
            why=f"it asks for {', '.join(asked)}; the model has {', '.join(have)}",
            remedy="compare modules with the names in model.named_modules(), or ask by role alone"
            if self.selection.modules
            else "ask for roles that the model has (roles=[...]) or take another policy; "
            "print(surgery.read(model)) shows what was found",
        )


def _number(layer: int | None) -> int:
    return -1 if layer is None else layer


_ATTENTION = (Role.QUERY, Role.KEY, Role.VALUE, Role.ATTENTION_OUTPUT)


def _merge_twins(chosen: Chosen, notes: list[str]) -> Chosen:
    """One adapter where two roles own the very same rows (keys that are also the values)."""
    seen: dict[object, Projection] = {}
    for p in list(chosen):
        twin = seen.setdefault((p.weight_name, p.rows), p)
        if twin is not p:
            del chosen[p]
            same = twin.role is p.role
            what = f"{p.role} more than once" if same else f"both {twin.role} and {p.role}"
            notes.append(f"{p.weight_name} is {what}: one adapter")
    return chosen
