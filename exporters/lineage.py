"""Where an exported model comes from: its base weights, and what was trained on top of them."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from surgery.operations.identity import combined, fingerprint
from surgery.operations.plan import Plan


@dataclass(frozen=True)
class Lineage:
    """One adapted model, or adapted part of one.

    Attributes:
        policy: The whole policy, as plain data.
        adapters: ``{"kind", "rank", "alpha", "options", "roles", "count"}`` for each sort of adapter.
        base: What ``surgery info`` calls the base of its adapter file.
    """

    policy: dict[str, Any]
    adapters: list[dict[str, Any]]
    base: str

    @classmethod
    def of(cls, part: nn.Module, plan: Plan) -> Lineage:
        """Of a model that still carries its adapters."""
        prints = (fingerprint(part, operation) for operation in plan.operations)
        policy = plan.policy.model_dump(mode="json")
        return cls(policy, _adapters(plan), combined(prints))


def facts(lineages: Sequence[Lineage], model: nn.Module) -> dict[str, Any]:
    """The metadata of it: ``policies``, ``adapters`` and ``fingerprint`` (``weights``, ``base``)."""
    bases = [lineage.base for lineage in lineages]
    prints = {"weights": weights_fingerprint(model)}
    if bases:
        prints["base"] = bases[0] if len(bases) == 1 else combined(bases)
    return {
        "policies": [lineage.policy for lineage in lineages] or None,
        "adapters": [entry for lineage in lineages for entry in lineage.adapters] or None,
        "fingerprint": prints,
    }


@torch.no_grad()
def weights_fingerprint(model: nn.Module) -> str:
    """sha256 over name, dtype, shape and bytes of every entry of the state dict."""
    found = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if not isinstance(value, torch.Tensor):
            continue
        found.update(repr((name, value.dtype, tuple(value.shape))).encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _adapters(plan: Plan) -> list[dict[str, Any]]:
    counts: dict[str, int] = defaultdict(int)
    roles: dict[str, dict[str, None]] = defaultdict(dict)
    sorts = {}
    for operation in plan.operations:
        key = operation.adapter.model_dump_json()
        sorts[key] = operation.adapter.model_dump(mode="json")
        counts[key] += 1
        roles[key][str(operation.projection.role)] = None
    return [{**sorts[key], "roles": list(roles[key]), "count": counts[key]} for key in sorts]
