"""surgery policies: what it lists, writes and refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

import policies

from .conftest import SETTINGS, TIMM, Run


def test_list_names_every_policy(run: Run) -> None:
    assert [row["name"] for row in run("policies", "list", "--json")] == list(policies.names())
    assert "vit-attn-qv" in run("policies", "list").stdout


def test_show_is_the_policy_in_full(run: Run) -> None:
    plain = run("policies", "show", "vit-last-blocks-qv", "--json")
    assert policies.get(plain) == policies.get("vit-last-blocks-qv")
    assert "rank: 8" in run("policies", "show", "vit-attn-qv").stdout


BY_DEPTH = """\
name: by-depth
select:
  - roles: [attention.query]
    part: vision
    rank: {0-5: 4, last 2: 16}
  - modules: ["*.fc?"]
    depth: last 50%
    adapter: {kind: srlora, rank: 4, target_rank: 12}
adapter: {kind: lora, rank: 2}
"""


@pytest.mark.parametrize("parent", [*policies.names(), "by-depth.yaml"])
def test_new_writes_a_policy_that_is_valid_and_found(run: Run, parent: str, tmp_path: Path) -> None:
    (tmp_path / "by-depth.yaml").write_text(BY_DEPTH)
    made = run("policies", "new", "mine", "--from", parent, "--json")
    path = tmp_path / made["path"]
    old, new = policies.get(parent), policies.get("mine")
    assert path.is_file() and (new.select, new.train) == (old.select, old.train)
    run("policies", "check", path)
    assert "mine" in {row["name"] for row in run("policies", "list", "--json")}


def test_new_never_replaces_a_file(run: Run, tmp_path: Path) -> None:
    run("policies", "new", "mine")
    path = tmp_path / ".surgery/policies/mine.yaml"
    path.write_text("train: [head]\n")
    assert "FileExistsError" in run("policies", "new", "mine", code=1).stderr
    assert path.read_text() == "train: [head]\n" and len(list(path.parent.iterdir())) == 1


def test_a_new_policy_can_be_planned(run: Run) -> None:
    run("policies", "new", "mine")
    made = run("plan", TIMM, *SETTINGS, "-p", "mine", "--json")
    assert made["policy"]["name"] == "mine" and len(made["operations"]) == 4


WRONG = {
    "select:\n  - roles: [query]\n    depht: last 2\n": (3, "depth"),
    "select:\n  - roles: [attention.qurey]\n": (2, "attention.query"),
    "train: [head]\nselect: ]\n": (2, ""),
    "train: [head]\nadapter:\n  kind: simlora\nselect: [{roles: query}]\n": (3, "symlora"),
    "select:\n  - roles: query\nadapter:\n  kind: srlora\n  targt_rank: 9\n": (5, "target_rank"),
    "select:\n  - roles: query\n    adapter: {kind: lora, gama: 2}\n": (3, "gama"),
    "rank: 16\nselect:\n  - roles: query\n": (1, "adapter: {rank: 16}"),
    "select:\n  - roles: [q_proj]\n": (2, "attention.query"),
}


@pytest.mark.parametrize("text", WRONG, ids=range(len(WRONG)))
def test_check_names_the_line_and_the_near_word(run: Run, text: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text(text)
    line, word = WRONG[text]
    result = run("policies", "check", "wrong.yaml", "--json", code=1)
    assert f"wrong.yaml:{line}" in result.stderr and word in result.stderr
    assert result.stdout == ""


def test_check_of_a_good_and_of_a_missing_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text("extends: vit-attn-qv\nadapter: {rank: 3}\n")
    found = run("policies", "check", "good.yaml", "--json")
    assert found["valid"] and found["policy"]["adapter"]["rank"] == 3
    assert "missing.yaml" in run("policies", "check", "missing.yaml", code=1).stderr


def test_the_schema_is_that_of_policies(run: Run) -> None:
    import json

    assert json.loads(run("policies", "schema").stdout) == policies.json_schema()
