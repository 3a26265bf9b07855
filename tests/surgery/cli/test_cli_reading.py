"""inspect, plan and verify say what the functions say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from packaging.version import Version

import surgery
from policies.roles import Role

from .conftest import SETTINGS, TIMM, Run, base


def test_inspect_prints_the_anatomy_of_a_timm_model(run: Run) -> None:
    assert run("inspect", TIMM, *SETTINGS, "--json") == surgery.read(base()).to_dict()
    assert "attention.query" in run("inspect", TIMM, *SETTINGS).stdout


def test_inspect_draws(run: Run, tmp_path: Path) -> None:
    run("inspect", TIMM, *SETTINGS, "--html", "drawn.html", "-p", "vit-attn-qv")
    text = (tmp_path / "drawn.html").read_text(encoding="utf-8")
    assert text.count(" cut") == 4 and ">8</i>" in text, "query and value of two layers, rank 8"
    assert (
        "cannot be written" in run("inspect", TIMM, *SETTINGS, "--html", "no/x.html", code=1).stderr
    )
    run("inspect", TIMM, *SETTINGS, "-p", "vit-attn-qv", code=2)


def test_plan_takes_a_budget(run: Run) -> None:
    made = run("plan", TIMM, *SETTINGS, "-p", "vit-attn-qv", "--budget", "10k", "--json")
    assert made["adapter_parameters"] <= 10_000 and made["notes"][0].startswith("budget 10k")


needs_meta = pytest.mark.skipif(
    Version(timm.__version__) <= Version("1.0.20"),
    reason="timm cannot build ViTs without memory yet",
)


@needs_meta
def test_inspect_on_the_meta_device_reads_the_same(run: Run) -> None:
    real = run("inspect", TIMM, *SETTINGS, "--json")
    assert run("inspect", TIMM, *SETTINGS, "--meta", "--json") == real


def test_inspect_with_verification_adds_it(run: Run) -> None:
    found = run("inspect", "factories_for_cli:tiny", "--set", "depth=1", "--verify", "--json")
    assert found["verification"]["proved"] is True
    assert found["verification"]["claims"] == 4


def test_verify_proves_and_refutes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("verify", TIMM, *SETTINGS, "--json")
    assert run(*words)["proved"] is True
    swapped = _swap(surgery.read(base()))
    monkeypatch.setattr(surgery, "read", lambda *_: swapped)
    found = run(*words, code=1)
    assert found["proved"] is False and found["refuted"]


def _swap(anatomy: surgery.Anatomy) -> surgery.Anatomy:
    """Query and key exchanged in every site."""
    from dataclasses import replace

    other = {Role.QUERY: Role.KEY, Role.KEY: Role.QUERY}
    sites = tuple(
        replace(
            site,
            projections=tuple(replace(p, role=other.get(p.role, p.role)) for p in site.projections),
        )
        for site in anatomy.sites
    )
    return replace(anatomy, sites=sites)


def test_plan_lays_the_policy_with_its_overrides(run: Run) -> None:
    made = run(
        "plan", TIMM, *SETTINGS, "--policy", "vit-attn-qv", "--adapter", "srlora", "--rank", 3,
        "--depth", "last 1", "--role", "key", "--role", "mlp.up", "--train", "norms",
        "--option", "target_rank=9", "--json",
    )  # fmt: skip
    assert {o["adapter"]["kind"] for o in made["operations"]} == {"srlora"}
    assert {o["adapter"]["rank"] for o in made["operations"]} == {3}
    assert {o["adapter"]["options"]["target_rank"] for o in made["operations"]} == {9}
    assert [o["projection"]["role"] for o in made["operations"]] == ["attention.key", "mlp.up"]
    assert list(made["train"]) == ["norms"]
    assert {o["projection"]["layer"] for o in made["operations"]} == {1}


@needs_meta
def test_plan_needs_no_weights(run: Run) -> None:
    words = ("plan", TIMM, *SETTINGS, "-p", "vit-attn-qv", "--json")
    assert run(*words, "--meta") == run(*words)


def test_a_model_that_does_not_tell_gets_its_input_by_shape(run: Run) -> None:
    result = run("inspect", "factories_for_cli:Silent", code=1)
    assert "--input" in result.stderr and result.stdout == ""
    found = run("inspect", "factories_for_cli:Silent", "--input", "x=2x6x16", "--json")
    assert len(found["sites"]) == 1
    assert found == run("inspect", "factories_for_cli:Silent", "--input", "2x6x16", "--json") | {
        "inputs": found["inputs"]
    }


def test_a_transformers_folder_without_weights_is_random_and_the_same_each_time(
    run: Run, bert: Path
) -> None:
    found = run("inspect", f"hf:{bert}", "--json")
    assert found["model"].endswith("BertForSequenceClassification")
    made = run("plan", f"hf:{bert}", "-p", "text-attn-qv", "--set", "num_hidden_layers=1", "--json")
    assert len(made["operations"]) == 2


def test_a_checkpoint_brings_its_weights(run: Run, tmp_path: Path) -> None:
    from surgery.cli.models import Source

    state = {key: torch.rand_like(value) for key, value in base().state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    torch.save({"state_dict": state}, tmp_path / "b.pth")
    for name in ("a.safetensors", "b.pth"):
        source = Source.parse(TIMM, SETTINGS[1::2], None, tmp_path / name)
        loaded: dict[str, Any] = source.build().state_dict()
        assert all(torch.equal(loaded[key], state[key]) for key in state)
