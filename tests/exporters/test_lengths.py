"""Models that ask for the length of a tensor keep their batch dynamic."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import exporters
from exporters.lengths import open_lengths
from surgery.errors import CaptureError

HERE = sys.modules[__name__]


class Anchored(nn.Module):
    """Repeats its anchors for each of the batch, as RT-DETR does, and counts a list."""

    def __init__(self) -> None:
        super().__init__()
        self.anchors, self.linear = nn.Parameter(torch.randn(1, 3, 4)), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.anchors.repeat(len(x), 1, 1), self.linear(x)]
        return torch.cat(parts, 1) / len(parts)


def test_a_batch_asked_for_by_len_stays_dynamic(tmp_path: Path) -> None:
    path, model = tmp_path / "model.onnx", Anchored().eval()
    exporters.to_onnx(model, path, example_inputs=torch.randn(2, 5, 4), target="portable")
    x = torch.randn(7, 5, 4)
    (found,) = exporters.open_session(path).run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(x).detach())
    assert "len" not in vars(HERE)


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        assert vars(HERE)["len"](x) == 2
        raise RuntimeError("on purpose")


def test_the_code_is_as_it_was_after_a_failure(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="on purpose"):
        exporters.to_onnx(Failing().eval(), tmp_path / "m.onnx", example_inputs=torch.randn(2, 3))
    assert "len" not in vars(HERE)


def test_code_with_a_len_of_its_own_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    own = object()
    monkeypatch.setattr(HERE, "len", own, raising=False)
    with open_lengths(Anchored()):
        assert vars(HERE)["len"] is own
    assert vars(HERE)["len"] is own
