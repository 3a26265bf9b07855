"""Loops over experts that have tokens, each spelled as some library does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import exporters

EXPERTS = 4


class Experts(nn.Module):
    """The best expert's linear layer for each token, added up in a loop over those that have any."""

    def __init__(self, named: bool, counted: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.router, self.named, self.counted = nn.Linear(6, EXPERTS), named, counted
        self.experts = nn.ModuleDict({f"expert_{i}": nn.Linear(6, 6) for i in range(EXPERTS)})
        self.weights = nn.Parameter(torch.randn(EXPERTS, 6, 6))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, 6)
        with torch.no_grad():
            chosen = nn.functional.one_hot(self.router(rows).argmax(-1), EXPERTS).T
            busy = (chosen.sum(-1) > 0).nonzero() if self.counted else torch.nonzero(chosen.any(-1))
        found = torch.zeros_like(rows)
        for expert in busy:
            (tokens,) = torch.where(chosen[expert].squeeze(0))
            found.index_add_(0, tokens, self._made(expert[0], rows[tokens]))
        return found.view_as(x)

    def _made(self, number: int | Tensor, rows: Tensor) -> Tensor:
        return self.experts[f"expert_{number}"](rows) if self.named else rows @ self.weights[number]


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_experts_without_tokens_add_nothing(named: bool, counted: bool, tmp_path: Path) -> None:
    model = Experts(named, counted).eval()
    report = exporters.to_onnx(
        model, tmp_path / "m.onnx", target="portable", example_inputs=torch.randn(2, 5, 6)
    )
    assert any("experts with tokens" in note for note in report.notes)
    session = exporters.open_session(tmp_path / "m.onnx")
    many = torch.randn(1, 5, 6)
    one = many[:, :1].expand(1, 5, 6).contiguous()  # keeps one expert busy
    for x in (many, one):
        with torch.no_grad():
            wanted = model(x)
        found = torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_row_of_nothing_that_adds_something_is_found(tmp_path: Path) -> None:
    class Counts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 1
            for _ in (x[0] > 0).nonzero():
                y = y + 1
            return y

    with pytest.raises(exporters.VerificationError, match="output differs"):
        exporters.to_onnx(
            Counts().eval(),
            tmp_path / "m.onnx",
            target="portable",
            example_inputs=torch.randn(2, 5),
        )


def test_without_such_a_loop_nothing_is_told(tmp_path: Path) -> None:
    class Places(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.new_zeros(x.shape[0]).index_add(0, (x > 0).nonzero()[:, 0], x[x > 0])

    report = exporters.to_onnx(
        Places().eval(), tmp_path / "m.onnx", target="portable", example_inputs=torch.randn(2, 5)
    )
    assert not any("experts" in note for note in report.notes)
