"""Policies: declarations of which projections get which adapter. No torch on this floor."""

from __future__ import annotations

from typing import Any

from policies.errors import PolicyError, SurgeryError
from policies.registry import PolicyLike, get, names, register
from policies.roles import Role
from policies.schema import AdapterSpec, Policy, Selection


def json_schema() -> dict[str, Any]:
    """JSON schema of a policy file, for editors."""
    return Policy.model_json_schema()


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
