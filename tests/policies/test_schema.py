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
        ("name: x\nselect:\n  - roles: [attention.quary]\n", "broken.yaml:3", "attention.query"),
        ("name: x\nselct:\n  - roles: [head]\n", "broken.yaml:2", "select"),
        ("name: x\nselect:\n  - roles: [head]\n    dept: all\n", "broken.yaml:4", "depth"),
        ("name: x\ntrain: [head]\nadapter: {kind: lora, rank: 0}\n", "broken.yaml:3", None),
        ("name: x\nselect:\n  - roles: [head]\n    depth: lsat 4\n", "broken.yaml:4", "last 4"),
        ("name: x\nselect:\n  - depth: all\n", "broken.yaml:3", None),
        ("select:\n  - roles:\n    - head\n    - vlaue\n", "broken.yaml:4", "value"),
        ("train: [head]\nadapter:\n  kind: lora\n  rank: '8'\n", "broken.yaml:4", None),
        ("train: [head]\nadapter:\n  alpha: .inf\n", "broken.yaml:3", None),
        ("train: [head]\nadapter:\n  options: 3\n", "broken.yaml:3", None),
        ("train: [head]\ntrain: [norms]\n", "broken.yaml:2", None),
        ("train: [head]\n\nwhen: &x now\n", "broken.yaml:3", None),
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
        "a: " + "[" * 40 + "]" * 40,
        "when: 2020-13-41\n",
        "? [a]\n: b\n",
        "name: a\0b",
        "a: 1\n---\nb: 2\n",
        "",
    ],
    ids=[
        *("alias", "list", "unclosed", "python object", "huge", "deep", "deep and closed"),
        *("no date", "list as key", "null byte", "two documents", "empty"),
    ],
)
def test_hostile_files_end_in_one_clear_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "hostile.yaml"
    path.write_text(text)
    with pytest.raises(PolicyError) as caught:
        policies.get(path)
    assert str(path) in str(caught.value) and caught.value.remedy


def test_several_findings_are_all_reported_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("select:\n  - roles: [qery]\n  - rols: [key]\nadapter: {rank: 0}\n")
    with pytest.raises(PolicyError) as caught:
        policies.get(path)
    message = str(caught.value)
    assert all(f"broken.yaml:{line}" in message for line in (2, 3, 4))
    assert "'query'" in message and "'roles'" in message


def test_unreadable_text_is_a_policy_error(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"name: caf\xe9\n")
    with pytest.raises(PolicyError, match="cannot be read"):
        policies.get(path)


def test_short_words_mean_the_long_ones() -> None:
    short = Selection.model_validate({"roles": ["query", "attention.value", "up"], "depth": 3})
    assert short.roles == (Role.QUERY, Role.VALUE, Role.UP) and short.depth == "3"
    assert Selection.model_validate({"roles": "head"}).roles == (Role.HEAD,)


@pytest.mark.parametrize("depth", [True, None, 1.5, ["all"]])
def test_a_depth_is_text_or_a_layer(depth: object) -> None:
    with pytest.raises(ValidationError):
        Selection.model_validate({"roles": ["head"], "depth": depth})


def test_a_selection_refines_the_adapter_of_its_policy() -> None:
    policy = policies.get(
        {
            "adapter": {"kind": "lora", "rank": 4, "alpha": 8, "dropout": 0.1},
            "select": [
                {"roles": ["query"]},
                {"roles": ["key"], "adapter": {"rank": 16}},
                {"roles": ["value"], "adapter": "pissa"},
                {"roles": ["head"], "adapter": {"rank": 2, "options": {"init": "gaussian"}}},
            ],
        }
    )
    plain, wider, other, whole = (policy.adapter_of(selection) for selection in policy.select)
    assert plain == policy.adapter
    assert wider == AdapterSpec(kind="lora", rank=16, alpha=8, options={"dropout": 0.1})
    assert other == AdapterSpec(kind="pissa", rank=4, alpha=8)
    assert whole == AdapterSpec(kind="lora", rank=2, alpha=8, options={"init": "gaussian"})


def test_a_missing_file_is_a_policy_error(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="cannot be read"):
        policies.get(tmp_path / "none.yaml")


def test_policies_are_immutable() -> None:
    policy = policies.get("vit-attn-qv")
    with pytest.raises(ValidationError, match="frozen"):
        policy.name = "other"  # type: ignore[misc]


ADAPTERS = st.builds(
    AdapterSpec,
    kind=st.sampled_from(["lora", "symlora"]),
    rank=st.integers(1, 64),
    alpha=st.none() | st.floats(0.5, 64),
    options=st.dictionaries(st.sampled_from(["dropout", "init"]), st.integers(0, 1)),
)
SELECTIONS = st.builds(
    Selection,
    roles=st.lists(st.sampled_from(list(Role)), min_size=1, max_size=3).map(tuple),
    depth=st.sampled_from(["all", "last 4", "0-5", "every 2", "first 50%", "3"]),
    modules=st.lists(st.sampled_from(["*.attn", "blocks.*"]), max_size=2).map(tuple),
    adapter=st.none() | ADAPTERS,
)


@given(
    st.builds(
        Policy,
        name=st.text("abc-", min_size=1),
        select=st.lists(SELECTIONS, min_size=1, max_size=3).map(tuple),
        adapter=ADAPTERS,
        train=st.lists(st.sampled_from(["head", "norms", "*.gamma"]), max_size=2).map(tuple),
    )
)  # fmt: skip
def test_plain_data_and_yaml_bring_the_policy_back(policy: Policy) -> None:
    assert policies.get(policy.to_dict()) == policy
    assert policies.get(yaml.safe_load(yaml.safe_dump(policy.to_dict()))) == policy


def test_the_json_schema_describes_every_key() -> None:
    schema = policies.json_schema()
    assert set(schema["properties"]) == {*Policy.model_fields, "extends"}
    assert "required" not in schema, "a file may leave everything to what it extends"
