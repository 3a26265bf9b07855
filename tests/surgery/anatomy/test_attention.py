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


def spelled_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.mT
    exponentials = (scores - scores.amax(-1, keepdim=True)).exp()
    return exponentials / (exponentials.sum(-1, keepdim=True) + 1e-6) @ v


def over_logsumexp(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As Reformer has it."""
    scores = q @ k.mT
    return (scores - scores.logsumexp(-1, keepdim=True)).exp() @ v


WAYS: dict[str, Attend] = {
    "plain": lambda q, k, v: (q @ k.mT).softmax(-1) @ v,
    "slots": slots,
    "key first": key_first,
    "merged": merged,
    "einsum without a result": lambda q, k, v: torch.einsum("...id,...jd", q, k).softmax(-1) @ v,
    "movedim": lambda q, k, v: (k @ q.mT).softmax(-2).movedim(-1, -2) @ v,
    "mT": lambda q, k, v: (k @ q.mT).softmax(-2).mT @ v,
    "adjoint": lambda q, k, v: (k @ q.mT).softmax(-2).adjoint() @ v,
    "spelled out": spelled_out,
    "logarithm": lambda q, k, v: (q @ k.mT).log_softmax(-1).exp() @ v,
    "logsumexp": over_logsumexp,
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


class Asking(nn.Module):
    """Queries that are learned as they are."""

    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.query = nn.Parameter(torch.randn(HEADS, 1, WIDTH // HEADS))
        self.attend = attend

    def forward(self, x: Tensor) -> Tensor:
        k, v = (heads(layer(x)).transpose(1, 2) for layer in (self.k, self.v))
        return self.out(self.attend(self.query, k, v).transpose(1, 2).flatten(2))


LEARNED: dict[str, Attend] = {
    "first": lambda q, k, v: (q @ k.mT).softmax(-1) @ v,
    "second": lambda q, k, v: (k @ q.mT).softmax(-2).mT @ v,
    "einsum": lambda q, k, v: torch.einsum("hqd,bhkd->bhqk", q, k).softmax(-1) @ v,
    "expanded": lambda q, k, v: (q.expand(len(k), -1, -1, -1) @ k.mT).softmax(-1) @ v,
}


@pytest.mark.parametrize("way", LEARNED)
def test_a_learned_query_asks_without_a_projection(way: str) -> None:
    torch.manual_seed(0)
    model, inputs = Asking(LEARNED[way]), torch.randn(2, TOKENS, WIDTH)
    anatomy = surgery.read(model, inputs)
    (site,) = anatomy.sites
    assert [p.module for p in site.projections] == ["k", "v", "out"]
    assert site.notes == ("query: not projected: it is learned as it is",) and not anatomy.unplaced
    assert surgery.verify(model, anatomy, inputs).proved


def test_scores_with_a_table_of_positions_are_those_of_the_activations() -> None:
    """The nearer product is one with something learned."""
    table = nn.Parameter(torch.randn(WIDTH, TOKENS).expand(2, -1, -1).clone())

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ table + (q @ k.mT).flatten(1).view(2, TOKENS, TOKENS)).softmax(-1) @ v

    model, inputs = Model(attend), torch.randn(2, TOKENS, WIDTH)
    model.table = table
    (site,) = surgery.read(model, inputs).sites
    assert [p.module for p in site.projections] == ["q", "k", "v", "out"]
    assert surgery.verify(model, surgery.read(model, inputs), inputs).proved
