"""What a file may be apart from the model by: the tolerance, or what fp32 itself leaves open."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import exporters
from exporters.capture import capture
from exporters.eager import Array, outputs_of
from exporters.inputs import collect
from exporters.parity import ParityRow, Truth, relative_error
from exporters.verify import Verification


class Difference(nn.Module):
    """Far from what fp32 can tell: the difference of two large sums, beside an output that is well told."""

    def __init__(self, large: float = 1e4) -> None:
        super().__init__()
        self.linear, self.large = nn.Linear(64, 3), large

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.linear(x)
        return y, (y + self.large) - self.large


class Halves(Difference):
    """Cannot compute in fp64."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, z = super().forward(x)
        return y, z @ torch.ones(3, 3)


def truth(model: nn.Module) -> Truth:
    torch.manual_seed(0)
    return Truth.of(model, capture(model, collect(model, torch.randn(2, 64))))


class Apart:
    """A file that is apart from the model by some share of each output's largest value."""

    def __init__(self, truth: Truth, *shares: float) -> None:
        self.cases, self.shares = iter(truth.cases), shares

    def __call__(self, feeds: Mapping[str, Array]) -> list[Array]:
        _, outputs = next(self.cases)
        pairs = zip(outputs, self.shares, strict=True)
        return [output + share * np.abs(output).max() for output, share in pairs]


def verdicts(model: nn.Module, *shares: float) -> list[set[bool]]:
    """Whether each output passed, over all cases."""
    reference = truth(model.eval())
    rows = reference.measure(Apart(reference, *shares), 1e-5).rows
    return [{row.passed for row in rows if row.output == name} for name in reference.outputs]


def test_an_output_may_be_apart_by_what_fp32_leaves_open() -> None:
    assert verdicts(Difference(), 0, 4e-5) == [{True}, {True}]


def test_what_fp32_tells_may_not() -> None:
    assert verdicts(Difference(), 4e-5, 0) == [{False}, {True}]


@pytest.mark.parametrize("large", [1e4, 1e6])
def test_however_little_fp32_tells_a_fault_is_found(large: float) -> None:
    assert verdicts(Difference(large), 0, 2e-3)[1] == {False}


def test_nan_never_passes() -> None:
    assert verdicts(Difference(), 0, np.nan)[1] == {False}


def test_without_fp64_the_tolerance_holds() -> None:
    assert verdicts(Halves(), 0, 4e-5)[1] == {False}


def test_the_model_is_not_asked_where_the_tolerance_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("exporters.parity.rounding", lambda *_: pytest.fail("asked"))
    assert verdicts(Difference(), 0, 0) == [{True}, {True}]


def test_a_model_that_draws_random_numbers_is_told_so() -> None:
    class Noisy(Difference):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y, z = super().forward(x)
            return y, z + torch.randn_like(z)

    for model, remarked in ((Noisy(), True), (Difference(), False)):
        reference = truth(model.eval())
        found = reference.measure(Apart(reference, 0, 0.1), 1e-5)
        assert (found.remark is not None and "random numbers" in found.remark) == remarked
    assert reference.measure(Apart(reference, 0, 0), 1e-5).remark is None


def test_a_model_that_gives_nan_itself_is_told_so() -> None:
    class Undefined(Difference):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y, z = super().forward(x)
            return y, z / torch.zeros(3) * 0

    reference = truth(Undefined().eval())
    found = reference.measure(Apart(reference, 0, 0), 1e-5)
    assert found.remark == "the model itself gives NaN for x (1, 64)"


def test_a_report_says_what_fp32_leaves_open(tmp_path: Path) -> None:
    class Rounded(nn.Module):
        """In steps of 6e-5: a last bit of the linear, which no two libraries agree on, decides for one."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 512)

        def forward(self, x: Tensor) -> Tensor:
            return (self.linear(x) + 1e3) - 1e3

    torch.manual_seed(0)
    path = tmp_path / "model.onnx"
    x = torch.randn(2, 64)
    report = exporters.to_onnx(Rounded().eval(), path, example_inputs=x, target="portable")
    error = report.files[0].error
    assert error is not None
    told = [note for note in report.notes if note.startswith("output may differ by")]
    assert bool(told) == (error > 1e-5)


def test_only_outputs_beyond_the_tolerance_are_told() -> None:
    rows = [ParityRow("y", {}, 2e-5, 1e-5, 3e-5), ParityRow("z", {}, 9e-6, 1e-5)]
    rows += [ParityRow("w", {}, 4e-5, 1e-5, 3e-5)]
    (note,) = Verification(rows).notes
    assert note.startswith("y may differ by 3e-05")


@pytest.mark.parametrize(
    ("found", "error"),
    [
        ([1.0, -np.inf, 2.0], 0.0),
        ([1.0, -np.inf, 2.2], 0.1),
        ([1.0, np.inf, 2.0], np.nan),
        ([1.0, 3.0, 2.0], np.nan),
        ([-np.inf, -np.inf, 2.0], np.nan),
        ([np.nan, -np.inf, 2.0], np.nan),
    ],
)
def test_an_infinity_must_be_met_by_the_same(found: list[float], error: float) -> None:
    measured = relative_error(np.array([1.0, -np.inf, 2.0]), np.array(found))
    assert measured == pytest.approx(error, nan_ok=True)


def test_outputs_that_hide_by_an_infinity_are_exported(tmp_path: Path) -> None:
    class Picks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(9, 1)

        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            return self.embed(ids)[..., 0].masked_fill(mask == 0, -torch.inf)

    ids = torch.randint(9, (2, 6))
    report = exporters.to_onnx(
        Picks().eval(),
        tmp_path / "m.onnx",
        target="portable",
        example_inputs={"ids": ids, "mask": torch.ones_like(ids)},
    )
    assert report.files[0].error == 0.0


def test_what_torch_calculates_without_its_fast_path_is_the_reference() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 1).eval()
    hidden = torch.tensor([[False] * 3 + [True]])
    given = collect(model, {"src": torch.randn(1, 4, 8), "src_key_padding_mask": hidden}, False)
    with torch.no_grad():
        fast = model(**given.kwargs)
    (found,) = outputs_of(model, given)
    assert not fast[0, 3].any() and found[0, 3].all()
    np.testing.assert_allclose(found[0, :3], fast[0, :3], atol=1e-6)
    assert torch.backends.mha.get_fastpath_enabled()
