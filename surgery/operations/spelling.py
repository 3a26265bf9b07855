"""Operations spelt out as a policy: a rank for each role and depth, modules where these do not tell."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from glob import escape
from typing import Any

import policies
from policies import Policy
from surgery.anatomy.render import ranges
from surgery.anatomy.types import Anatomy, Projection
from surgery.operations.plan import Operation

ByRank = Mapping[int, Sequence[Projection]]


def spell_out(policy: Policy, placed: Iterable[tuple[Operation, int]], anatomy: Anatomy) -> Policy:
    """The policy that puts each operation's adapter, with the rank beside it, on its projection.

    Args:
        policy: Where the rest comes from: the adapter, what else trains.
        placed: Operations with their ranks.
        anatomy: What the operations were planned on.
    """
    groups: dict[tuple[str, str, bool], dict[int, list[Projection]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for operation, rank in placed:
        p = operation.projection
        adapter = operation.adapter.model_copy(update={"rank": policy.adapter.rank})
        key = (p.role.value, adapter.model_dump_json(), _told_by_layer(p, anatomy))
        groups[key][rank].append(p)
    plain = policy.to_dict()
    plain.pop("budget", None)
    plain["name"] = f"{policy.name}-allocated"
    plain["select"] = [
        {"roles": [role], **place, **_adapter(adapter, policy)}
        for (role, adapter, told), by_rank in groups.items()
        for place in (_by_depth(by_rank) if told else _by_module(by_rank))
    ]
    return policies.get(plain)


def _told_by_layer(projection: Projection, anatomy: Anatomy) -> bool:
    """Whether role and layer say which projection is meant."""
    if projection.layer is None:
        return False
    alike = (p.layer for p in anatomy.projections if p.role is projection.role)
    return sum(layer == projection.layer for layer in alike) == 1


def _by_depth(by_rank: ByRank) -> list[dict[str, Any]]:
    layers = {rank: [p.layer for p in found] for rank, found in sorted(by_rank.items())}
    every = [layer for own in layers.values() for layer in own]
    return [{"depth": ranges(every), "rank": {ranges(own): rank for rank, own in layers.items()}}]


def _by_module(by_rank: ByRank) -> list[dict[str, Any]]:
    return [
        {"modules": [escape(p.module) for p in found], "rank": {"all": rank}}
        for rank, found in sorted(by_rank.items())
    ]


def _adapter(json: str, policy: Policy) -> dict[str, Any]:
    own = policies.AdapterSpec.model_validate_json(json)
    return {} if own == policy.adapter else {"adapter": own.model_dump(mode="json")}
