"""What verification runs a model on besides its example: padding on the left, rows that are nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import exporters
from exporters.capture import capture
from exporters.inputs import collect
from exporters.parity import Truth
from exporters.precision import TOLERANCES
from exporters.probes import probes

AXES = {name: {0: "batch", 1: "sequence"} for name in ("ids", "attention_mask")}
TIME = {"x": {0: "batch", 1: "time"}}


class Pooled(nn.Module):
    """The mean over a row's tokens; of none ``least`` makes a number, or NaN, or an error."""

    def __init__(self, least: float, strict: bool = False) -> None:
        super().__init__()
        self.embed, self.least, self.strict = nn.Embedding(9, 4), least, strict

    def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        if (
            self.strict
            and not torch.compiler.is_compiling()
            and not bool(attention_mask.any(1).all())
        ):
            raise ValueError("an empty row")
        kept = attention_mask[..., None].float()
        return (self.embed(ids) * kept).sum(1) / kept.sum(1).clamp(min=self.least)


def truth(model: nn.Module) -> Truth:
    given = {"ids": torch.randint(9, (2, 6)), "attention_mask": torch.ones(2, 6, dtype=torch.int64)}
    return Truth.of(model.eval(), capture(model, collect(model, given, AXES)))


def rows_of(found: Truth) -> list[list[int]]:
    ((inputs, _),) = found.hidden
    return inputs.tensors["attention_mask"][:2].tolist()


LEFT = [0, 0, 0, 1, 1, 1, 1, 1, 1]


def test_a_row_is_padded_on_the_left_and_one_is_nothing_else():
    assert rows_of(truth(Pooled(1.0))) == [LEFT, [0] * 9]


@pytest.mark.parametrize("model", [Pooled(0.0), Pooled(1.0, strict=True)])
def test_a_row_is_empty_only_where_the_model_makes_numbers_of_it(model):
    left, kept = rows_of(truth(model))
    assert left == LEFT
    assert any(kept)


def test_without_a_padding_mask_there_is_nothing_to_try():
    model = nn.Linear(4, 3)
    assert Truth.of(model, capture(model, collect(model, torch.randn(2, 4)))).hidden == ()


@pytest.mark.parametrize(("precision", "passes"), [("fp32", False), ("fp16", True), ("int8", True)])
def test_a_file_that_is_wrong_there_is_found_where_a_lowest_number_hides_all(precision, passes):
    reference = truth(Pooled(1.0))
    known = [outputs for _, outputs in reference.cases]
    wrong = [[output + 1 for output in outputs] for _, outputs in reference.hidden]
    answers = iter([*known, *wrong])
    rows = reference.measure(lambda feeds: next(answers), TOLERANCES[precision].error).rows
    assert all(row.passed for row in rows) is passes
    assert all(np.isfinite(row.error) for row in rows)


class Bins(nn.Module):
    """A table of 24 places, and as many bins as adaptive pooling makes of 20: a graph fixes the width of one."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(24, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool1d((x + self.places[: x.shape[1]]).mT, 4)


def test_an_axis_is_varied_where_twice_the_size_is_beyond_the_limit() -> None:
    captured = capture(Bins().eval(), collect(Bins(), torch.randn(2, 20, 3), TIME))
    assert captured.limits["time"] == (1, 24)
    assert {tries[0].sizes["time"] for tries in probes(captured)} == {20, 24}


def test_what_a_graph_fixes_is_found_there(tmp_path: Path) -> None:
    with pytest.raises(exporters.VerificationError, match="output differs"):
        exporters.to_onnx(
            Bins().eval(),
            tmp_path / "m.onnx",
            target="portable",
            example_inputs=torch.randn(2, 20, 3),
            dynamic=TIME,
        )


def test_half_the_size_is_tried_where_the_model_does_not_take_twice_of_it() -> None:
    class Small(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if not torch.compiler.is_compiling() and x.shape[1] > 20:
                raise ValueError("too long")
            return x * 2

    model = Small().eval()
    found = Truth.of(model, capture(model, collect(model, torch.randn(2, 20), {"x": {1: "time"}})))
    assert {inputs.sizes["time"] for inputs, _ in found.cases} == {20, 10}


def test_an_example_of_zeros_hides_no_fault(tmp_path: Path) -> None:
    class Up(nn.Module):
        """torch's exporter writes another rounding of places for this one."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(F.interpolate(x, scale_factor=1.7, mode="nearest-exact"))

    with pytest.raises(exporters.VerificationError, match="output differs"):
        exporters.to_onnx(
            Up().eval(),
            tmp_path / "m.onnx",
            target="portable",
            example_inputs=torch.zeros(2, 3, 8, 8),
            dynamic={"x": {0: "batch", 2: "height", 3: "width"}},
        )
