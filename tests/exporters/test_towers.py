"""Two batches in one model: told apart where the graph compares them, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import exporters
from exporters.capture import capture
from exporters.inputs import collect

GIVEN = {
    "ids": torch.randint(1, 9, (2, 6)),
    "mask": torch.ones(2, 6, dtype=torch.int64),
    "images": torch.randn(2, 6, 4),
    "seen": torch.ones(2, 6, dtype=torch.int64),
}


class Towers(nn.Module):
    """Texts and images; each mask is read by index, so that torch does not learn whose rows it has."""

    def __init__(self, compares: bool = True) -> None:
        super().__init__()
        self.embed, self.image, self.compares = nn.Embedding(9, 4), nn.Linear(4, 4), compares

    def forward(
        self, ids: Tensor, mask: Tensor, images: Tensor, seen: Tensor
    ) -> tuple[Tensor, Tensor]:
        texts, pictures = self._mean(self.embed(ids), mask), self._mean(self.image(images), seen)
        return (texts @ pictures.T if self.compares else texts), pictures

    def _mean(self, x: Tensor, kept: Tensor) -> Tensor:
        rows = torch.arange(x.shape[0])[:, None]
        weights = kept[rows, torch.arange(x.shape[1])[None]][..., None].float()
        return (x * weights).sum(1) / weights.sum(1)


def axes(model: nn.Module, dynamic: object = True) -> dict[str, dict[int, str]]:
    return dict(capture(model, collect(model, GIVEN, dynamic)).inputs.axes)


def test_what_is_compared_has_a_batch_each_and_masks_go_with_what_they_mask() -> None:
    found = axes(Towers().eval())
    assert {name: dims[0] for name, dims in found.items()} == {
        "ids": "batch",
        "mask": "batch",
        "images": "images_batch",
        "seen": "images_batch",
    }


def test_without_a_comparison_there_is_one_batch() -> None:
    assert {dims[0] for dims in axes(Towers(compares=False).eval()).values()} == {"batch"}


def test_names_that_were_given_stay() -> None:
    given = {name: {0: "batch"} for name in GIVEN}
    assert axes(Towers().eval(), given) == given


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, exporters.ExportReport]:
    torch.manual_seed(0)
    model, path = Towers().eval(), tmp_path_factory.mktemp("towers") / "m.onnx"
    return model, exporters.to_onnx(model, path, target="portable", example_inputs=GIVEN)


def test_a_report_names_them(exported: tuple[nn.Module, exporters.ExportReport]) -> None:
    _, report = exported
    assert "images_batch is the batch of images: it need not be that of ids" in report.notes
    sizes = [row.sizes for row in report.files[0].verification.parity]
    assert {(each["batch"], each["images_batch"]) for each in sizes} >= {(1, 1), (1, 5), (5, 2)}


@pytest.mark.parametrize(("texts", "images"), [(1, 4), (3, 1), (2, 9)])
def test_batches_may_differ(
    texts: int, images: int, exported: tuple[nn.Module, exporters.ExportReport]
) -> None:
    model, report = exported
    counts = {"ids": texts, "mask": texts, "images": images, "seen": images}
    feeds = {name: value[torch.arange(counts[name]) % 2] for name, value in GIVEN.items()}
    session = exporters.open_session(report.files[0].path)
    found = session.run(None, {name: value.numpy() for name, value in feeds.items()})
    with torch.no_grad():
        for got, wanted in zip(found, model(**feeds), strict=True):
            torch.testing.assert_close(torch.from_numpy(got), wanted)


class Compared(nn.Module):
    """All with all; ``pairs`` are wanted in the end, which there are only in equal batches."""

    def __init__(self, pairs: bool) -> None:
        super().__init__()
        self.pairs = pairs

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        scores = x @ y.T
        return scores[torch.arange(x.shape[0]), torch.arange(x.shape[0])] if self.pairs else scores


@pytest.mark.parametrize(("pairs", "own"), [(False, "y_batch"), (True, "batch")])
def test_a_model_that_wants_pairs_has_one_batch(pairs: bool, own: str, tmp_path: Path) -> None:
    report = exporters.to_onnx(
        Compared(pairs).eval(),
        tmp_path / "m.onnx",
        target="portable",
        example_inputs=(torch.randn(2, 4), torch.randn(2, 4)),
    )
    session = exporters.open_session(report.files[0].path)
    assert [i.shape[0] for i in session.get_inputs()] == ["batch", own]


def test_a_batch_that_is_a_number_leads_no_tower() -> None:
    class Unbound(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x.unflatten(1, (2, 4)).flatten(1) + sum(y.unbind(0))

    given = (torch.randn(1, 8), torch.randn(1, 8))
    with pytest.raises(exporters.ExportError, match="works at one batch size only"):
        capture(Unbound().eval(), collect(Unbound(), given))
