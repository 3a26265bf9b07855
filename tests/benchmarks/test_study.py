"""The study's own machinery: which runs are missing, what is read off them, and controls that do what they say."""

from __future__ import annotations

import json
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgery
from benchmarks.study import pictures, schedule, summary
from benchmarks.study.controls import KeepingState, register_kinds
from benchmarks.study.methods import METHODS
from benchmarks.study.parts import Examples, Parts
from benchmarks.study.runs import Run
from benchmarks.study.schedule import Records
from surgery.adapters import registry
from surgery.adapters.srlora import SRLoRA


def record(method: str, rate: float, seed: int, **others: Any) -> dict[str, Any]:
    made = {"task": "r8", "method": method, "rate": rate, "seed": seed, "steps": 300}
    made |= {"validation": 0.5, "test": 0.5, "trainable": 20, "head": 10, "losses": [2.0, 1.0]}
    return made | others


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records("r8", 300, tmp_path)


def test_seeds_of_the_best_two_rates_are_wanted_once_every_rate_was_tried(
    records: Records,
) -> None:
    rates = METHODS["lora"].rates
    assert [(run.rate, run.seed) for run in records.missing("lora", 3)] == [(r, 0) for r in rates]
    for number, rate in enumerate(rates):
        assert records.best_rate("lora") is None
        seen = {1: 0.9, 2: 0.8}.get(number, 0.5)
        records.add(record("lora", rate, 0, validation=seen, test=1 - rate))
    assert records.best_rate("lora") == rates[1]
    assert [(run.rate, run.seed) for run in records.missing("lora", 3)] == [
        (rates[1], 1),
        (rates[1], 2),
        (rates[2], 1),
        (rates[2], 2),
    ]


def test_the_rate_is_the_better_one_on_all_seeds_that_both_have(records: Records) -> None:
    for rate, seen in zip(METHODS["lora"].rates, (0.1, 0.9, 0.8, 0.1, 0.1), strict=True):
        records.add(record("lora", rate, 0, validation=seen))
    lucky, steady = METHODS["lora"].rates[1:3]
    records.add(record("lora", lucky, 1, validation=0.5))
    assert records.best_rate("lora") == lucky, "the other has no such seed yet"
    records.add(record("lora", steady, 1, validation=0.8, test=0.3))
    assert records.best_rate("lora") == steady
    records.add(record("lora", lucky, 2, validation=1.0))
    assert [run["test"] for run in records.chosen("lora")] == [0.5, 0.3]


def test_the_grid_grows_until_the_best_rate_lies_inside(records: Records) -> None:
    for rate in METHODS["lora"].rates:
        records.add(record("lora", rate, 0, validation=rate))
    assert [(run.rate, run.seed) for run in records.missing("lora", 3)] == [(0.016, 0)]
    assert records.is_at_an_end("lora")
    records.add(record("lora", 0.016, 0, validation=0.0))
    assert records.best_rate("lora") == 0.008 and not records.is_at_an_end("lora")
    assert [(run.rate, run.seed) for run in records.missing("lora", 2)] == [(0.008, 1), (0.004, 1)]


def test_the_grid_grows_downward_too(records: Records) -> None:
    for rate in METHODS["head"].rates:
        records.add(record("head", rate, 0, validation=-rate))
    assert [run.rate for run in records.missing("head", 1)] == [0.000333]


def test_what_was_kept_is_read_again_and_runs_of_another_length_are_others(tmp_path: Path) -> None:
    Records("r8", 300, tmp_path).add(record("head", 1e-3, 0))
    assert (
        len(list(Records("r8", 300, tmp_path).missing("head", 1))) == len(METHODS["head"].rates) - 1
    )
    assert len(list(Records("r8", 100, tmp_path).missing("head", 1))) == len(METHODS["head"].rates)


def test_two_studies_at_a_time_keep_the_runs_of_both(tmp_path: Path) -> None:
    one, other = (Records("r8", 300, tmp_path) for _ in range(2))
    one.add(record("head", 1e-3, 0))
    other.add(record("lora", 1e-3, 0))
    one.add(record("head", 3e-3, 0))
    kept = (tmp_path / "r8.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["method"] for line in kept) == ["head", "head", "lora"]


def perform_at_once(run: Run, *_: object) -> dict[str, Any]:
    return record(run.method, run.rate, run.seed)


def in_threads(workers: int, *_: object) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers)


def test_what_runs_when_the_time_is_up_is_kept_and_nothing_new_is_started(
    records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, go_on = threading.Event(), threading.Event()

    def perform(run: Run, *rest: object) -> dict[str, Any]:
        started.set()
        go_on.wait(20)
        return perform_at_once(run, *rest)

    monkeypatch.setattr(schedule, "ProcessPoolExecutor", in_threads)
    monkeypatch.setattr(schedule, "perform", perform)
    monkeypatch.setattr(
        schedule.Budget, "is_spent", property(lambda _: started.is_set() and not go_on.set())
    )
    study = schedule.Study([records], ["lora"], Path())
    assert [found["rate"] for found in study.run()] == [METHODS["lora"].rates[0]]
    assert len(list(records.missing("lora", 3))) == len(METHODS["lora"].rates) - 1


def test_a_study_ends_when_every_seed_of_the_best_rates_was_run(
    records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = METHODS["head"].rates[1]

    def perform(run: Run, *_: object) -> dict[str, Any]:
        return record(run.method, run.rate, run.seed, validation=-abs(math.log(run.rate / best)))

    monkeypatch.setattr(schedule, "ProcessPoolExecutor", in_threads)
    monkeypatch.setattr(schedule, "perform", perform)
    done = list(schedule.Study([records], ["head"], Path(), workers=2).run())
    assert {run["seed"] for run in done if run["rate"] == best} == {0, 1, 2}
    assert not list(records.missing("head", 3)) and records.best_rate("head") == best


def test_the_picture_of_the_directions_shows_every_stay(tmp_path: Path) -> None:
    switches = {
        "blocks.0.attn.query": [(10, [3, 1])],
        "blocks.0.attn.value": [(10, [0, 2]), (20, [0, 4])],
    }
    pictures.directions(switches, 30, tmp_path / "directions.svg")
    text = (tmp_path / "directions.svg").read_text()
    assert "0 query" in text and text.count("PolyCollection") == 2 * 8 + 2 + 4


def test_a_row_says_when_a_method_was_at_the_last_loss_of_lora() -> None:
    slow, fast = [4.0, 4.0, 4.0, 4.0, 2.0, 2.0, 2.0, 2.0], [4.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    runs = {
        "lora": [record("lora", 1e-3, s, losses=slow, test=t) for s, t in ((0, 0.5), (1, 0.7))],
        "pissa": [record("pissa", 1e-3, 0, losses=fast, test=0.8)],
    }
    lora, pissa = summary.rows_of(runs)
    assert lora["test_mean"] == pytest.approx(0.6) and lora["test_std"] == pytest.approx(
        0.1414, abs=1e-4
    )
    assert (lora["steps_to_lora"], lora["weights"]) == (1.0, 10)
    # The mean of what there is so far is 2 after the third value; LoRA's mean of four is 2 at its end.
    assert (pissa["steps_to_lora"], pissa["test_std"]) == (0.375, None)


def test_means_are_taken_over_methods_that_every_task_has() -> None:
    def rows(**means: float) -> list[dict[str, Any]]:
        return [
            {"method": m, "test_mean": t, "test_std": 0.2, "seeds": 4} for m, t in means.items()
        ]

    found = summary.means({"a": rows(lora=0.5, pissa=0.7), "b": rows(lora=0.7, head=0.1)})
    assert [row["method"] for row in found] == ["lora"]
    assert found[0]["test_mean"] == pytest.approx(0.6)
    assert found[0]["standard_error"] == pytest.approx(0.1 / 2**0.5)


def test_parts_are_read_as_they_were_written(tmp_path: Path) -> None:
    part = Examples(torch.arange(12, dtype=torch.uint8).view(3, 2, 2), torch.tensor([0, 1, 0]))
    Parts(part, part[:2], part[:1]).write(tmp_path / "parts.safetensors")
    found = Parts.read(tmp_path / "parts.safetensors")
    assert [len(p) for p in (found.train, found.validation, found.test)] == [3, 2, 1]
    assert found.train.inputs.dtype is torch.uint8 and torch.equal(found.train.inputs, part.inputs)


@pytest.fixture
def controls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their names are forgotten afterwards: other tests try every kind there is."""
    monkeypatch.setattr(registry, "_KINDS", dict(registry._KINDS))
    register_kinds()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def after_a_switch(
    kind: str, recomposer_of: type[surgery.Recomposer]
) -> tuple[SRLoRA, Any, Tensor]:
    """An adapter at its first switch: its optimizer, and the importance of its pairs before."""
    torch.manual_seed(0)
    model, x = Net(), torch.randn(8, 32)
    policy = {
        "select": [{"modules": ["linear"]}],
        "adapter": {"kind": kind, "rank": 4, "target_rank": 8},
    }
    surgery.apply(model, policy, example_inputs=x)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    recomposer = recomposer_of(model, optimizer, total_steps=4)
    adapter = next(m for m in model.modules() if isinstance(m, SRLoRA))
    while True:
        scores = SRLoRA.scores(adapter)
        model(x).square().sum().backward()
        if recomposer.step():
            return adapter, optimizer, scores
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.usefixtures("controls")
def test_the_control_that_keeps_state_keeps_it_and_srlora_does_not() -> None:
    for recomposer, kept in ((KeepingState, True), (surgery.Recomposer, False)):
        adapter, optimizer, _ = after_a_switch("srlora", recomposer)
        moments = optimizer.state[adapter.pairs()["B"][0]]["exp_avg"]
        assert bool((moments.abs().sum(0) > 0).all()) is kept


@pytest.mark.usefixtures("controls")
def test_restarts_begin_at_the_function_that_they_left() -> None:
    adapter, _, _ = after_a_switch("relora", surgery.Recomposer)
    b, a = adapter.factors()
    swapped = (b == 0).all(0)
    assert swapped.sum() == adapter.swap and (a.abs().sum(1) > 0).all()
