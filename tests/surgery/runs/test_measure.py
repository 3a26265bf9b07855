"""``rank: auto`` in a training file: measured within the budget, the same everywhere, kept by a resumed run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

import policies
import surgery
from surgery.runs.feed import feed
from surgery.runs.folder import RunFolder
from surgery.runs.measure import policy_for
from surgery.runs.schema import RunSpec

from .conftest import run, spec, vit

AUTO = {"name": "vit-attn-qkvo", "adapter": "lora", "rank": "auto", "budget": "900"}


def asked(folder: Path, colours: Path, **changes: Any) -> RunSpec:
    data = {"images": str(colours), "augment": not changes.pop("plainly", False)}
    fresh = spec(folder, data, **changes)
    plain = fresh.model_dump(mode="json") | {"policy": AUTO | {"batches": 2}}
    return RunSpec.model_validate(plain)


def measured(what: RunSpec) -> policies.Policy:
    one = run(what)
    return policy_for(one.model, what, feed(one.data, one.model, what))


def test_the_data_decide_within_the_budget(tmp_path: Path, colours: Path) -> None:
    what = asked(tmp_path, colours)
    found = measured(what)
    plan = surgery.plan(vit(), found)
    assert 900 - 64 < plan.adapter_parameters <= 900
    assert len({operation.adapter.rank for operation in plan.operations}) > 1
    assert found == measured(what)
    assert found != measured(what.model_copy(update={"seed": 5}))  # other batches


def test_the_loss_is_that_of_the_training(tmp_path: Path, colours: Path) -> None:
    """allocate with the same two batches and cross-entropy says the same."""
    what = asked(tmp_path, colours, plainly=True)
    one = run(what)
    feeding = feed(one.data, one.model, what)
    draw = torch.randperm(len(feeding.train), generator=torch.Generator().manual_seed(0))
    batches = [
        feeding.collate([feeding.train[int(n)] for n in part]) for part in draw[:10].split(5)
    ]
    pairs = [(batch[feeding.collate.name], batch["labels"]) for batch in batches]  # type: ignore[attr-defined]
    own = surgery.allocate(vit(), pairs, "vit-attn-qkvo", adapter="lora", budget="900")
    assert policy_for(one.model, what, feeding) == own


def test_a_resumed_run_keeps_the_ranks_that_it_measured(
    tmp_path: Path, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    what = asked(tmp_path / "run", colours, schedule={"epochs": 1})
    first = run(what).train()
    folder = RunFolder(Path(what.output.folder))
    kept = policies.get(folder.policy)
    assert kept == measured(what)
    folder.adapter.unlink()
    monkeypatch.setattr("surgery.runs.train.policy_for", None)  # not asked again
    assert run(what).train(resume=True)["trainable"] == first["trainable"]


@pytest.mark.parametrize("rank", ["automatic", "8", ""])
def test_another_word_than_auto_is_refused(tmp_path: Path, colours: Path, rank: str) -> None:
    plain = asked(tmp_path, colours).model_dump(mode="json")
    plain["policy"]["rank"] = rank
    with pytest.raises(ValidationError, match="or the word auto"):
        RunSpec.model_validate(plain)
