"""Finding policies, extending them, and laying overrides over them."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import pytest

import policies
from policies import Policy, PolicyError, Role, registry
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


def test_extends_is_relative_to_the_file_that_says_it(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("extends: vit-attn-qv\nadapter: {rank: 3}\n")
    inner = tmp_path / "a"
    inner.mkdir()
    (inner / "base.yaml").write_text("extends: ../base.yaml\ntrain: [norms]\n")
    child = inner / "child.yaml"
    child.write_text("extends: base.yaml\nadapter: lora\n")
    found = policies.get(child)
    assert (found.name, found.train, found.adapter.rank) == ("child", ("norms",), 3)
    assert found.adapter.kind == "lora" and found.select == policies.get("vit-attn-qv").select


def test_two_policies_cannot_extend_each_other(tmp_path: Path) -> None:
    for one, other in (("a", "b"), ("b", "a")):
        (tmp_path / f"{one}.yaml").write_text(f"when: never\nextends: {other}.yaml\n")
    with pytest.raises(PolicyError, match="no policy may extend itself") as caught:
        policies.get(tmp_path / "a.yaml")
    assert str(caught.value.where).endswith(".yaml:2")


def test_the_readme_of_the_package_shows_a_policy_that_works(tmp_path: Path) -> None:
    example = textwrap.dedent((policies.__doc__ or "").partition("::\n")[2])
    path = tmp_path / "wider.yaml"
    path.write_text(example)
    policy = policies.get(path)
    assert [policy.adapter_of(selection).rank for selection in policy.select] == [8, 16]
    assert policy.adapter_of(policy.select[1]).options == policy.adapter.options


@pytest.mark.parametrize("override", [{"rank": 4}, {"adapter": "lora"}, {"depth": "all"}])
def test_an_override_that_changes_nothing_is_refused(override: dict[str, object]) -> None:
    with pytest.raises(PolicyError, match="would change nothing"):
        policies.get("head-only", **override)
    assert policies.get("head-only", train=["norms"]).train == ("norms",)


def test_none_is_no_override() -> None:
    assert policies.get("vit-attn-qv", rank=None, adapter=None) == policies.get("vit-attn-qv")


def test_a_bad_override_is_named() -> None:
    with pytest.raises(PolicyError) as caught:
        policies.get("vit-attn-qv", rank=0)
    assert "'vit-attn-qv' with rank" in str(caught.value.where)


def test_packages_offer_policies_and_a_broken_one_harms_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wide = {"extends": "vit-attn-qv", "name": "wide"}
    monkeypatch.setitem(sys.modules, "acme", SimpleNamespace(WIDE=wide))
    offers = [
        EntryPoint("acme-wide", "acme:WIDE", registry.GROUP),
        EntryPoint("acme-broken", "acme_missing:NOTHING", registry.GROUP),
        EntryPoint("vit-attn-qv", "acme:WIDE", registry.GROUP),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: offers)
    assert {"acme-wide", "acme-broken"} <= set(policies.names())
    assert policies.get("acme-wide").adapter.kind == "symlora"
    assert policies.get("vit-attn-qv").name == "vit-attn-qv", "the library wins over a package"
    with pytest.raises(PolicyError, match="cannot be loaded") as caught:
        policies.get("acme-broken")
    assert "acme_missing" in str(caught.value)


def test_the_ground_floor_imports_no_torch() -> None:
    code = "import sys, policies; policies.get('vit-attn-qv'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
