"""What editors are told about policy files: their JSON schema, short forms included."""

from __future__ import annotations

from typing import Any

from policies import depth
from policies.roles import Role
from policies.schema import TRAIN_WORDS, Policy

Schema = dict[str, Any]


def json_schema() -> Schema:
    """JSON schema of a policy file, for editors; ``policies/policy.schema.json`` is what it gives.

    It takes every form that :func:`policies.get` takes: one word instead of a list, ``value`` for
    ``attention.value``, ``adapter: lora``, a rank for all depths or by depth.
    """
    schema = Policy.model_json_schema()
    properties, selection = schema["properties"], schema["$defs"]["Selection"]["properties"]
    parent = {"type": "string", "description": "name or path of the policy that this one builds on"}
    properties["extends"] = parent
    del schema["required"]  # a file without a name has its own
    words = dict.fromkeys(word for role in Role for word in (role.value, role.short))
    schema["$defs"]["Role"]["enum"] = list(words)
    del properties["budget"]["anyOf"]  # its type says it: text or a number
    for owner, key in ((properties, "train"), (selection, "roles"), (selection, "modules")):
        owner[key] = _or_one(owner[key])
    properties["train"]["examples"] = list(TRAIN_WORDS)
    for owner in (properties, selection):
        owner["adapter"] = _or_kind(owner["adapter"])
    selection["rank"] = _or_number(selection["rank"])
    selection["depth"]["examples"] = depth.EXAMPLES.split(", ")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _or_one(many: Schema) -> Schema:
    """A list, or one of its entries."""
    about: Schema = {
        key: many.pop(key) for key in ("description", "default", "title") if key in many
    }
    return {"anyOf": [many, many["items"]], **about}


def _or_kind(adapter: Schema) -> Schema:
    """``adapter: lora``."""
    about: Schema = {key: adapter.pop(key) for key in ("description", "default") if key in adapter}
    forms = adapter.get("anyOf", [adapter])
    return {"anyOf": [{"type": "string"}, *forms], **about}


def _or_number(ranks: Schema) -> Schema:
    """``rank: 16``, or a number for each depth."""
    by_depth = ranks["anyOf"][0]
    return {**ranks, "anyOf": [by_depth["additionalProperties"], *ranks["anyOf"]]}
