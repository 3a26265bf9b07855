"""Adapters on weights that keep heads and their channels in dimensions of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import surgery
from surgery.errors import PlanError

WIDTH, HEADS = 16, 2
EVERYTHING = {
    "select": [{"roles": ["attention.query", "attention.value", "attention.output"], "adapter": "lora", "rank": 2}]
}  # fmt: skip


class Heads(nn.Module):
    """Query, key and value are (in, heads, channels); the output is (out, heads, channels)."""

    def __init__(self) -> None:
        super().__init__()
        shape = (WIDTH, HEADS, WIDTH // HEADS)
        self.q, self.k, self.v, self.o = (nn.Parameter(torch.randn(shape) / 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("bsh,hnd->bnsd", x, w) for w in (self.q, self.k, self.v))
        weights = torch.einsum("bnid,bnjd->bnij", q, k).softmax(-1)
        return torch.einsum("bind,hnd->bih", torch.einsum("bnij,bnjd->bind", weights, v), self.o)


@pytest.fixture
def case() -> tuple[Heads, Tensor]:
    torch.manual_seed(0)
    return Heads(), torch.randn(2, 24, WIDTH)


def trained(model: Heads, x: Tensor) -> Tensor:
    """The output after three steps that move every adapter."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.5)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return model(x).detach()


def test_a_weight_that_is_no_matrix_in_memory_is_proved_and_refused_until_laid_out(
    case: tuple[Heads, Tensor],
) -> None:
    model, x = case
    weight = model.q.detach()
    model.q = nn.Parameter(weight.transpose(0, 1).contiguous().transpose(0, 1))
    anatomy = surgery.read(model, x)
    assert surgery.verify(model, anatomy, x).proved
    assert torch.equal(model.q, weight)
    with pytest.raises(PlanError, match=r"(?s)strides.*contiguous\(\)"):
        surgery.plan(model, EVERYTHING, anatomy=anatomy)
    model.q = nn.Parameter(model.q.contiguous())
    surgery.apply(model, EVERYTHING, anatomy=anatomy)


def test_apply_train_and_undo(case: tuple[Heads, Tensor]) -> None:
    model, x = case
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    before = model(x)
    surgery.apply(model, EVERYTHING, example_inputs=x)
    assert torch.equal(model(x), before)
    assert (trained(model, x) - before).abs().max() > 1e-3
    surgery.undo(model)
    assert {n: p.shape for n, p in model.named_parameters()} == {
        n: w.shape for n, w in weights.items()
    }
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())


def test_fold_is_the_adapted_model(case: tuple[Heads, Tensor]) -> None:
    model, x = case
    surgery.apply(model, EVERYTHING, example_inputs=x)
    adapted = trained(model, x)
    surgery.fold(model)
    torch.testing.assert_close(model(x), adapted)
    assert model.q.shape == (WIDTH, HEADS, WIDTH // HEADS)


def test_save_and_load(case: tuple[Heads, Tensor], tmp_path: Path) -> None:
    model, x = case
    fresh = Heads()
    fresh.load_state_dict(model.state_dict())
    surgery.apply(model, EVERYTHING, example_inputs=x)
    adapted = trained(model, x)
    surgery.save(model, tmp_path / "heads.safetensors")
    surgery.load(fresh, tmp_path / "heads.safetensors", example_inputs=x)
    assert torch.equal(fresh(x), adapted)
