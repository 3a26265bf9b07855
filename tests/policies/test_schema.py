"""The schema, and what a person is told who breaks it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import policies
from policies import AdapterSpec, Policy, PolicyError, Role, Selection


def test_unknown_keys_of_an_adapter_are_its_options() -> None:
    spec = AdapterSpec.model_validate({"kind": "srlora", "rank": 4, "target_rank": 16})
    assert spec.options == {"target_rank": 16}
    assert AdapterSpec.model_validate("lora").kind == "lora"


@pytest.mark.parametrize(
    ("text", "line", "near"),
    [
        ("name: x\nselect:\n  - roles: [attention.quary]\n", "line 3", "attention.query"),
        ("name: x\nselct:\n  - roles: [head]\n", "line 2", "select"),
        ("name: x\nselect:\n  - roles: [head]\n    dept: all\n", "line 4", "depth"),
        ("name: x\ntrain: [head]\nadapter: {kind: lora, rank: 0}\n", "line 3", None),
        ("name: x\nselect:\n  - roles: [head]\n    depth: lsat 4\n", "line 4", None),
        ("name: x\nselect:\n  - depth: all\n", "line 3", None),
        ("name: x\n", "selects projections", None),
    ],
)
def test_errors_point_at_the_line_and_the_near_word(
    tmp_path: Path, text: str, line: str, near: str | None
) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(PolicyError) as caught:
        policies.get(path)
    assert line in str(caught.value)
    assert near is None or f"{near!r}" in str(caught.value.remedy)


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x]\nb: *a\n",
        "[1, 2]\n",
        "name: [\n",
        "!!python/object/apply:os.system ['true']\n",
        "name: " + "x" * 70_000,
        "[" * 5000,
        "",
    ],
    ids=["alias", "list", "unclosed", "python object", "huge", "deep", "empty"],
)
def test_hostile_files_end_in_one_clear_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "hostile.yaml"
    path.write_text(text)
    with pytest.raises(PolicyError) as caught:
        policies.get(path)
    assert str(path) in str(caught.value) and caught.value.remedy


def test_a_missing_file_is_a_policy_error(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="cannot be read"):
        policies.get(tmp_path / "none.yaml")


def test_policies_are_immutable() -> None:
    policy = policies.get("vit-attn-qv")
    with pytest.raises(ValidationError, match="frozen"):
        policy.name = "other"  # type: ignore[misc]


SELECTIONS = st.builds(
    Selection,
    roles=st.lists(st.sampled_from(list(Role)), min_size=1, max_size=3).map(tuple),
    depth=st.sampled_from(["all", "last 4", "0-5", "every 2", "first 50%", 3]),
    modules=st.lists(st.sampled_from(["*.attn", "blocks.*"]), max_size=2).map(tuple),
)


@given(
    st.builds(
        Policy,
        name=st.text("abc-", min_size=1),
        select=st.lists(SELECTIONS, min_size=1, max_size=3).map(tuple),
        adapter=st.builds(AdapterSpec, kind=st.sampled_from(["lora", "symlora"]), rank=st.integers(1, 64)),
        train=st.lists(st.sampled_from(["head", "norms", "*.gamma"]), max_size=2).map(tuple),
    )
)  # fmt: skip
def test_plain_data_and_yaml_bring_the_policy_back(policy: Policy) -> None:
    assert policies.get(policy.to_dict()) == policy
    assert policies.get(yaml.safe_load(yaml.safe_dump(policy.to_dict()))) == policy


def test_the_json_schema_describes_every_key() -> None:
    schema = policies.json_schema()
    assert set(schema["properties"]) == set(Policy.model_fields)
