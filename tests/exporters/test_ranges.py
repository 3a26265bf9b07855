"""A model that branches on a size is exported for the branch of the example, and the report says for which sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import exporters
from exporters.capture import Captured, capture
from exporters.causal import decoder_step
from exporters.inputs import collect
from exporters.probes import probes


class Branching(nn.Module):
    def __init__(self, doubles: Callable[[int, int], bool]) -> None:
        super().__init__()
        self.linear, self.doubles = nn.Linear(4, 3), doubles

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return y * 2 if self.doubles(*x.shape[:2]) else y


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table[: x.shape[1]]


AXES = {"x": {0: "batch", 1: "sequence"}}


def captured(model: nn.Module, length: int) -> Captured:
    return capture(model.eval(), collect(model, torch.randn(2, length, 4), AXES))


def tried(found: Captured, axis: str) -> set[int]:
    return {tries[0].sizes[axis] for tries in probes(found)}


BEYOND = "beyond, the model has another graph or none"


@pytest.mark.parametrize(
    ("doubles", "axis", "limits", "note"),
    [
        (lambda b, n: b > 8, "batch", (1, 8), f"batch may be 1 to 8: {BEYOND}"),
        (lambda b, n: b > 3, "batch", (1, 3), f"batch may be 1 to 3: {BEYOND}"),
        (lambda b, n: n > 17, "sequence", (1, 17), f"sequence may be 1 to 17: {BEYOND}"),
        (
            lambda b, n: n < 10,
            "sequence",
            (10, 2**31),
            "sequence may be 10 or more: below, the model has another graph or none",
        ),
    ],
)
def test_a_range_that_a_branch_narrows_is_told_and_kept_to(doubles, axis, limits, note):
    found = captured(Branching(doubles), 16)
    assert found.limits[axis] == limits
    assert found.notes == (note,)
    assert all(limits[0] <= size <= limits[1] for size in tried(found, axis))
    assert len(tried(found, axis)) >= 2


@pytest.mark.parametrize(
    ("doubles", "condition"),
    [
        (lambda b, n: n == 7, "sequence != 7"),
        (lambda b, n: n % 2 == 1, "(sequence % 2) != 1"),
        (lambda b, n: b * n > 100, "batch*sequence <= 100"),
    ],
)
def test_what_is_no_range_is_told_as_it_was_asked(doubles, condition):
    found = captured(Branching(doubles), 16)
    assert found.notes == (
        f"the graph holds where {condition}: elsewhere the model may have another",
    )


def test_a_model_that_asks_for_nothing_has_nothing_to_tell():
    assert captured(Branching(lambda b, n: False), 16).notes == ()


def test_the_end_of_a_table_is_told():
    found = captured(Table(), 14)
    assert found.notes == (f"sequence may be 1 to 16: {BEYOND}",)
    assert tried(found, "sequence") == {14, 11}


@pytest.mark.parametrize(("length", "other"), [(2, 4), (3, 4), (4, 2)])
def test_no_length_is_tried_that_is_none(length, other):
    assert tried(captured(Branching(lambda b, n: n > 4), length), "sequence") == {length, other}


def test_a_condition_that_is_none_at_small_sizes_does_not_stop_an_export():
    class Windows(nn.Module):
        def forward(self, x):
            return x.unflatten(1, (-1, 5)).flatten(2)

    model = Windows().eval()
    axes = {"x": {0: "batch", 1: "time"}}
    assert capture(model, collect(model, torch.randn(2, 15, 3), axes)).limits["time"][0] == 1


@pytest.mark.parametrize("cache", [True, "right"])
def test_a_cache_has_no_narrowed_sizes(cache, build):
    step = decoder_step(build("llama"), cache).eval()
    assert capture(step, step.inputs()).notes == ()


def test_report_and_card_say_so(tmp_path: Path):
    model = Branching(lambda b, n: b > 8).eval()
    path = tmp_path / "m.onnx"
    report = exporters.to_onnx(model, path, example_inputs=torch.randn(2, 16, 4), dynamic=AXES)
    assert f"batch may be 1 to 8: {BEYOND}" in report.notes
    assert "batch may be 1 to 8" in path.with_suffix(".md").read_text()
