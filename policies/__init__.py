"""Policies: declarations of which projections get which adapter. No torch on this floor.

``policies.get("vit-attn-qv", rank=16)`` finds one and lays overrides over it; ``policies.names()`` lists those
there are. A file of your own in ``.surgery/policies`` or ``~/.config/model-surgery/policies`` is a name, too::

    extends: vit-attn-qv
    description: wider where it matters
    select:
      - roles: [attention.query, attention.value]
      - roles: [attention.value]
        depth: last 1/3
        adapter: {rank: 16}
"""

from __future__ import annotations

from typing import Any

from policies.errors import PolicyError, SurgeryError
from policies.registry import PolicyLike, get, names, register
from policies.roles import Role
from policies.schema import AdapterSpec, Policy, Selection


def json_schema() -> dict[str, Any]:
    """JSON schema of a policy file in its long form (lists, whole role names), for editors."""
    schema = Policy.model_json_schema()
    parent = {"type": "string", "description": "name or path of the policy that this one builds on"}
    schema["properties"]["extends"] = parent
    del schema["required"]  # a file without a name has its own
    return schema


__all__ = [
    "AdapterSpec",
    "Policy",
    "PolicyError",
    "PolicyLike",
    "Role",
    "Selection",
    "SurgeryError",
    "get",
    "json_schema",
    "names",
    "register",
]
