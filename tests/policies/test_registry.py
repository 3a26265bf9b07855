"""Finding policies, extending them, and laying overrides over them."""

from __future__ import annotations

from pathlib import Path

import pytest

import policies
from policies import Policy, PolicyError, Role
from policies.registry import LIBRARY


@pytest.mark.parametrize("path", sorted(LIBRARY.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_library_is_complete_and_documented(path: Path) -> None:
    policy = policies.get(path.stem)
    assert policy.name == path.stem
    assert policy.description and policy.when and policy.source
    assert policies.get(policy.to_dict()) == policy, "plain data must come back as the same policy"


def test_a_dozen_policies_are_there() -> None:
    assert len(policies.names()) >= 12 and "vit-attn-qv" in policies.names()


def test_by_path_by_mapping_and_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("select:\n  - roles: mlp.up\nadapter: lora\n")
    found = policies.get(path)
    assert found.name == "mine" and found.select[0].roles == (Role.UP,)
    assert found.adapter.kind == "lora"
    assert policies.get(str(path)) == found == policies.get(found.to_dict()) == policies.get(found)


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(PolicyError, match="vit-attn-vq") as caught:
        policies.get("vit-attn-vq")
    assert "'vit-attn-qv'" in str(caught.value.remedy)


@pytest.mark.parametrize("name", ["../secrets", "/etc/passwd", "a/b", ""])
def test_a_name_is_never_a_path(name: str) -> None:
    with pytest.raises(PolicyError, match="no policy named"):
        policies.get(name)


def test_project_and_home_folders_win_over_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    home = tmp_path / "config" / "model-surgery" / "policies"
    project = tmp_path / ".surgery" / "policies"
    for folder, kind in ((home, "lora"), (project, "pissa")):
        folder.mkdir(parents=True)
        text = f"select: [{{roles: [head]}}]\nadapter: {kind}\n"
        (folder / "vit-attn-qv.yaml").write_text(text)
        (folder / f"only-{kind}.yaml").write_text(text)
    assert policies.get("vit-attn-qv").adapter.kind == "pissa"
    assert policies.get("only-lora").adapter.kind == "lora"
    assert {"only-lora", "only-pissa"} <= set(policies.names())


def test_another_adapter_keeps_rank_and_drops_foreign_options() -> None:
    base = policies.get("vit-attn-qv", rank=12)
    assert base.adapter.options == {"rectangular": "truncate"} and base.adapter.rank == 12
    other = policies.get("vit-attn-qv", adapter="srlora", target_rank=48)
    assert (other.adapter.kind, other.adapter.rank) == ("srlora", 8)
    assert other.adapter.options == {"target_rank": 48}
    assert policies.get("vit-attn-qv", adapter={"kind": "lora", "rank": 2}).adapter.rank == 2


def test_overrides_reach_every_selection() -> None:
    policy = Policy(
        name="two",
        select=(
            {"roles": ["mlp.up"], "adapter": {"kind": "lora", "rank": 2}},
            {"roles": ["mlp.down"]},
        ),
    )
    changed = policies.get(policy, rank=5, depth="last 1", train="norms")
    assert [changed.adapter_of(s).rank for s in changed.select] == [5, 5]
    assert [s.depth for s in changed.select] == ["last 1", "last 1"]
    assert changed.train == ("norms",) and policy.train == ()


def test_extends_replaces_keys_and_merges_the_adapter() -> None:
    child = policies.get({"name": "child", "extends": "vit-attn-qv", "adapter": {"rank": 3}})
    assert child.name == "child" and child.train == ("head",)
    assert child.adapter.kind == "symlora" and child.adapter.rank == 3
    assert child.adapter.options == {"rectangular": "truncate"}
    other = policies.get({"extends": "vit-attn-qv", "adapter": {"kind": "lora"}})
    assert other.adapter.options == {}


def test_a_policy_cannot_extend_itself(tmp_path: Path) -> None:
    path = tmp_path / "loop.yaml"
    path.write_text(f"extends: {path}\n")
    with pytest.raises(PolicyError, match="cannot be extended"):
        policies.get(path)


def test_a_registered_policy_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("policies.registry._registered", {})
    mine = policies.register(policies.get("vit-attn-qv", rank=3).model_copy(update={"name": "r3"}))
    assert policies.get("r3") == mine and "r3" in policies.names()
