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

from policies.editors import json_schema
from policies.errors import PolicyError, SurgeryError
from policies.parts import Part
from policies.registry import PolicyLike, get, names, register
from policies.roles import Role
from policies.schema import AdapterSpec, Policy, Selection

__all__ = [
    "AdapterSpec",
    "Part",
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
