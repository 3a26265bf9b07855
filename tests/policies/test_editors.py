"""The JSON schema takes what ``policies.get`` takes, refuses what it refuses, and is kept as a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import policies
from policies import Policy, PolicyError
from policies.registry import LIBRARY

PUBLISHED = Path(policies.__file__).with_name("policy.schema.json")


def valid(plain: Any) -> bool:
    return bool(jsonschema.Draft202012Validator(policies.json_schema()).is_valid(plain))


def test_the_published_file_is_in_step() -> None:
    kept = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    assert kept == policies.json_schema(), "surgery policies schema > policies/policy.schema.json"
    jsonschema.Draft202012Validator.check_schema(kept)


def test_it_describes_every_key() -> None:
    schema = policies.json_schema()
    assert set(schema["properties"]) == {*Policy.model_fields, "extends"}
    assert "required" not in schema, "a file may leave everything to what it extends"


@pytest.mark.parametrize("path", sorted(LIBRARY.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_library_fits(path: Path) -> None:
    assert valid(yaml.safe_load(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "text",
    [
        "{select: [{roles: value, rank: 16}], adapter: lora}",
        "{select: [{roles: [query], part: vision, rank: {0-5: 4, last 2: 16}}], train: head}",
        "{select: [{modules: 'blocks.*', depth: 3, adapter: pissa}], budget: 0.3%}",
        "{select: [{roles: up, adapter: {kind: srlora, target_rank: 32}}], budget: 300000}",
    ],
)
def test_short_forms_fit(text: str) -> None:
    plain = yaml.safe_load(text)
    assert valid(plain) and policies.get(plain)


@pytest.mark.parametrize(
    "text",
    [
        "{select: [{roles: vlaue}]}",
        "{select: [{roles: value, part: visoin}]}",
        "{select: [{roles: value, rank: 0}]}",
        "{select: [{roles: value, rank: {}}]}",
        "{select: [{roles: value, dept: all}]}",
        "{train: [head], budgte: 1%}",
        "{select: [{roles: value}], budget: [1]}",
    ],
)
def test_what_is_wrong_is_underlined(text: str) -> None:
    plain = yaml.safe_load(text)
    assert not valid(plain)
    with pytest.raises(PolicyError):
        policies.get(plain)
