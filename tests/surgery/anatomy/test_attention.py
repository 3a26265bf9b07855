"""Who is query and who is key, however the scores are written and turned."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import surgery
from policies.roles import Role

WIDTH, HEADS, TOKENS = 16, 4, 10
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Model(nn.Module):
    """Four linears around an attention."""

    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.attend = attend

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(self.attend(self.q(x), self.k(x), self.v(x)))


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, -1))


def slots(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Slot attention: the softmax runs over the queries, the sum over the keys."""
    weights = torch.einsum("bid,bjd->bij", q, k).softmax(1) + 1e-8
    return torch.einsum("bjd,bij->bid", v, weights / weights.sum(-1, keepdim=True))


def key_first(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bkhd,bqhd->bkqh", heads(k), heads(q)).permute(0, 3, 2, 1)
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), heads(v)).flatten(2)


def merged(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Turned while heads are merged into the batch, with the scores in four dimensions again after it."""
    q, k, v = (heads(t).transpose(1, 2) for t in (q, k, v))
    scores = (k @ q.mT).flatten(0, 1).transpose(1, 2).softmax(-1)
    return (scores.view(-1, HEADS, TOKENS, TOKENS) @ v).transpose(1, 2).flatten(2)


WAYS: dict[str, Attend] = {
    "plain": lambda q, k, v: (q @ k.mT).softmax(-1) @ v,
    "slots": slots,
    "key first": key_first,
    "merged": merged,
    "einsum without a result": lambda q, k, v: torch.einsum("...id,...jd", q, k).softmax(-1) @ v,
    "movedim": lambda q, k, v: (k @ q.mT).softmax(-2).movedim(-1, -2) @ v,
    "mT": lambda q, k, v: (k @ q.mT).softmax(-2).mT @ v,
    "adjoint": lambda q, k, v: (k @ q.mT).softmax(-2).adjoint() @ v,
    "values first": lambda q, k, v: (v.mT @ (k @ q.mT).softmax(-2)).mT,
}


@pytest.mark.parametrize("way", WAYS)
def test_the_key_is_what_the_product_with_the_values_sums_over(way: str) -> None:
    torch.manual_seed(0)
    model, inputs = Model(WAYS[way]), torch.randn(2, TOKENS, WIDTH)
    anatomy = surgery.read(model, inputs)
    (site,) = anatomy.sites
    roles = (Role.QUERY, Role.KEY, Role.VALUE, Role.ATTENTION_OUTPUT)
    assert [p.module for role in roles for p in site.role(role)] == ["q", "k", "v", "out"]
    assert surgery.verify(model, anatomy, inputs).proved and not anatomy.unplaced
