"""A model that counts or remembers is read, verified and fold-checked, and has counted and remembered nothing."""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import surgery
from surgery.anatomy.buffers import kept_buffers, kept_state
from surgery.anatomy.capture import capture

WIDTH = 8


class Counting(nn.Module):
    """An attention on what differs from a running average."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.calls: Tensor
        self.mean: Tensor
        self.last: Tensor
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.register_buffer("last", torch.zeros(WIDTH), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.mean.mul_(0.9).add_(x.detach().mean((0, 1)), alpha=0.1)
        self.last = self.last + self.mean
        x = x - self.mean
        return x + self.o(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))


def test_reading_proving_and_folding_count_nothing() -> None:
    model, x = Counting(), torch.randn(2, 5, WIDTH)
    before = {name: (buffer, buffer.clone()) for name, buffer in model.named_buffers()}
    anatomy = surgery.read(model, x)
    assert surgery.verify(model, anatomy, x).proved
    surgery.apply(model, "vit-attn-qv", rank=2, anatomy=anatomy)
    assert surgery.fold(model, check_inputs=x).function_drift == 0
    for name, buffer in model.named_buffers():
        assert buffer is before[name][0] and torch.equal(buffer, before[name][1]), name


def test_an_error_keeps_them_too_and_what_has_grown_stays() -> None:
    model = Counting()
    with suppress(KeyError), kept_buffers(model):
        model(torch.randn(2, 5, WIDTH))
        model.last = torch.ones(2 * WIDTH)
        raise KeyError
    assert model.calls == 0 and not model.mean.any()
    assert model.last.shape == (2 * WIDTH,)


class Remembering(nn.Module):
    """Keeps what it computed first, as rotary embeddings keep their frequencies."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.lin, self.size = torch.full((WIDTH,), 2.0), nn.Linear(WIDTH, WIDTH), 0
        self.register_buffer("table", torch.ones(3))
        self.biases: dict[str, list[Tensor]] = {"cpu": []}

    def forward(self, x: Tensor) -> Tensor:
        if not self.biases["cpu"]:
            self.biases["cpu"].append(self.scale - self.scale)
        if not hasattr(self, "made"):
            self.made = torch.arange(WIDTH) / self.scale
        if x.shape[1] > self.size:
            self.size, self.part = x.shape[1], nn.Identity()
            self.register_buffer("table", torch.ones(self.size))
        return self.part(self.lin(x) * self.made) + self.biases["cpu"][0]


def test_what_a_model_keeps_while_it_is_captured_is_not_kept() -> None:
    model, x = Remembering(), torch.randn(2, 3, WIDTH)
    before, table, scale = list(vars(model)), model.table, model.scale
    capture(model, (x,))
    assert list(vars(model)) == before and list(model._modules) == ["lin"]
    assert model.table is table and model.scale is scale and model.size == 0
    assert model.biases == {"cpu": []}
    expected = model.lin(x) * torch.arange(WIDTH) / 2
    torch.testing.assert_close(model(x), expected)
    assert type(model.made) is Tensor


def test_a_buffer_that_was_written_and_then_replaced_by_a_longer_one_comes_back() -> None:
    model = Remembering()
    table = model.table
    with kept_state(model):
        model.table.zero_()
        model(torch.randn(2, 5, WIDTH))
        assert model.table.shape == (5,)
    assert model.table is table and torch.equal(table, torch.ones(3))
