"""What a model returns is made by its heads, whatever it returns of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import surgery
from policies.roles import Role

WIDTH = 16
X = torch.randn(2, 10, WIDTH)


class Classifier(nn.Module):
    """Attention over the tokens and a table of their positions, then a head; ``last`` makes the answer."""

    def __init__(self, last: Callable[[Tensor], object], classes: int = 3) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.position, self.head = nn.Embedding(10, WIDTH), nn.Linear(WIDTH, classes)
        self.last = last

    def forward(self, x: Tensor) -> object:
        x = x + self.position(torch.arange(x.shape[1]))
        x = x + self.out(F.scaled_dot_product_attention(*self.qkv(x).chunk(3, -1)))
        return self.last(self.head(x.mean(1)))


ANSWERS: dict[str, Callable[[Tensor], object]] = {
    "logits": lambda y: y,
    "probabilities": lambda y: y.softmax(-1),
    "their logarithms": lambda y: F.log_softmax(y, dim=1),
    "of one class": lambda y: torch.sigmoid(y[:, :1]).squeeze(-1),
    "the best class": lambda y: y.argmax(-1),
    "both": lambda y: {"logits": y, "probabilities": y.softmax(-1)},
    "soft-capped": lambda y: 30 * torch.tanh(y / 30),
}


@pytest.mark.parametrize("last", ANSWERS.values(), ids=ANSWERS)
def test_the_head_is_found_behind_any_answer_and_trains(last: Callable[[Tensor], object]) -> None:
    model = Classifier(last)
    anatomy = surgery.read(model, X)
    assert [p.weight_name for p in anatomy.others if p.role is Role.HEAD] == ["head.weight"]
    surgery.apply(model, "vit-attn-qv", anatomy=anatomy, rank=2)
    assert model.head.weight.requires_grad


def test_what_is_squashed_beside_a_head_is_none() -> None:
    """A gate that is returned, too, does not make its linear a head where there is one."""

    class Gated(Classifier):
        def forward(self, x: Tensor) -> object:
            return super().forward(x), self.out(x).sigmoid()

    anatomy = surgery.read(Gated(lambda y: y), X)
    heads = [p.weight_name for p in anatomy.others if p.role is Role.HEAD]
    assert heads == ["head.weight"]


def test_as_many_classes_as_positions_are_no_vocabulary() -> None:
    model = Classifier(lambda y: y, classes=10)
    anatomy = surgery.read(model, X)
    assert anatomy.embeddings == ()
    surgery.apply(model, "vit-attn-qv", anatomy=anatomy, rank=2)
    assert model.head.weight.requires_grad
