"""Turns of contenders, and the quick look that every verified file gets."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import exporters
from exporters import timing


def test_turns_are_blocks_and_their_first_calls_are_not_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    order: list[str] = []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])

    def contender(name: str, seconds: float) -> None:
        disturbed = order[-2:] != [name, name]
        clock[0] += seconds * (100 if disturbed else 1)
        order.append(name)

    contenders = {"a": lambda: contender("a", 0.001), "b": lambda: contender("b", 0.002)}
    times = timing.take_turns(contenders, rounds=3, calls=4, warmup=2)
    assert order == (["a"] * 6 + ["b"] * 6) * 3
    assert times["a"] == pytest.approx([1.0] * 12)
    assert times["b"] == pytest.approx([2.0] * 12)


@pytest.mark.parametrize(("seconds", "calls"), [(0.001, 16), (0.2, 4), (3.0, 1)])
def test_a_quick_look_takes_few_calls_where_they_are_long(
    seconds: float, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, made = [0.0], {"model": 0, "file": 0}
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])

    def contender(name: str, takes: float) -> None:
        made[name] += 1
        clock[0] += takes * (2 if made[name] % 5 == 2 else 1)  # some calls are disturbed

    found = timing.quick_look(
        lambda: contender("model", seconds), lambda: contender("file", seconds / 2), {"batch": 1}, 2
    )
    assert found.calls == calls <= made["file"] <= calls + 5
    assert found.model_ms == pytest.approx(1000 * seconds)
    assert found.file_ms == pytest.approx(500 * seconds)
    assert (found.sizes, found.threads) == ({"batch": 1}, 2)


def test_a_file_is_timed_beside_the_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 512), nn.Linear(512, 8)).eval()
    given = {"example_inputs": torch.randn(2, 64), "overwrite": True}
    report = exporters.to_onnx(model, tmp_path / "m.onnx", **given)
    for file in report.files:
        assert file.latency.file_ms > 0 and file.latency.model_ms > 0
        assert file.latency.sizes == {"batch": 1}
        assert file.latency.threads == torch.get_num_threads()
    assert "ms where PyTorch takes" in str(report)
    assert report.to_dict()["files"][0]["verification"]["latency"]["calls"] > 0
    silent = exporters.to_onnx(model, tmp_path / "m.onnx", verify=False, **given)
    assert [file.latency for file in silent.files] == [None, None]


def test_a_file_for_another_device_is_not_timed_on_this_one(tmp_path: Path) -> None:
    report = exporters.to_onnx(
        nn.Linear(8, 3).eval(), tmp_path / "m.onnx", target="cuda", example_inputs=torch.randn(2, 8)
    )
    assert [file.latency is None for file in report.files] == [True, False]
