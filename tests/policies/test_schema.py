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
        ("select:\n  - roles: value\n    part: visoin\n", "broken.yaml:3", "vision"),
        (
            "select:\n  - roles: value\n    rank:\n      all: 4\n      lsat 2: 8\n",
            "broken.yaml:5",
            "last 2",
        ),
        ("select:\n  - roles: value\n    rank: 0\n", "broken.yaml:3", None),
        ("select:\n  - roles: value\nbudget: lots\n", "broken.yaml:3", None),
        ("select:\n  - {roles: value, rank: 4}\nbudget: 1%\n", "broken.yaml:3", None),
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


def test_ranks_by_depth_go_from_the_general_to_the_particular() -> None:
    selection = Selection.model_validate({"roles": "value", "rank": {"all": 4, 0: 2, "last 2": 16}})
    assert [selection.rank_at(layer, 4) for layer in range(4)] == [2, 4, 16, 16]
    assert selection.rank_at(None, 4) == 4, "what lies outside the layers is in all"
    partial = Selection.model_validate({"roles": "value", "rank": {"0-1": 4}})
    assert [partial.rank_at(layer, 3) for layer in (0, 1, 2, None)] == [4, 4, None, None]
    assert Selection.model_validate({"roles": "value", "rank": 16}).rank == {"all": 16}


@pytest.mark.parametrize(
    ("adapter", "word"), [({"rank": {"all": 4}}, "select:"), ({"rank": "auto"}, "allocate")]
)
def test_an_adapter_has_one_rank_and_the_error_says_where_others_go(
    adapter: dict[str, object], word: str
) -> None:
    with pytest.raises(PolicyError) as caught:
        policies.get({"select": [{"roles": "value"}], "adapter": adapter})
    assert word in str(caught.value.remedy)


def test_a_rank_and_a_budget_put_an_end_to_each_other() -> None:
    ranked = policies.get({"select": [{"roles": "value", "rank": {"all": 4, "last 1": 8}}]})
    by_budget = policies.get(ranked, budget="1%")
    assert by_budget.budget == "1%" and by_budget.select[0].rank is None
    one = policies.get(by_budget, rank=3)
    assert (one.budget, one.adapter.rank) == (None, 3)
    again = policies.get(by_budget, rank={"all": 3, "first 1": 5})
    assert (again.budget, again.select[0].rank) == (None, {"all": 3, "first 1": 5})
    with pytest.raises(PolicyError, match="leave one of them out"):
        policies.get(ranked, rank=3, budget="1%")
