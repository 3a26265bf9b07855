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


@pytest.mark.parametrize(("texts", "images"), [(1, 4), (3, 1), (2, 9)])
def test_batches_may_differ(texts: int, images: int, tmp_path: Path) -> None:
    model = Towers().eval()
    report = exporters.to_onnx(model, tmp_path / "m.onnx", target="portable", example_inputs=GIVEN)
    assert "images_batch is the batch of images: it need not be that of ids" in report.notes
    rows = [report.files[0].verification.parity[i].sizes for i in (0, -1)]
    assert rows[0]["batch"] == rows[0]["images_batch"] == 1
    feeds = {
        n: v[torch.arange(images if n in {"images", "seen"} else texts) % 2]
        for n, v in GIVEN.items()
    }
    found = exporters.open_session(tmp_path / "m.onnx").run(
        None, {name: value.numpy() for name, value in feeds.items()}
    )
    with torch.no_grad():
        for got, wanted in zip(found, model(**feeds), strict=True):
            torch.testing.assert_close(torch.from_numpy(got), wanted)
