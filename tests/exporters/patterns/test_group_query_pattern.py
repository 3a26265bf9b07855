"""A causal decoder's attention: what is matched computes, by the operator's definition, what the graph computes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from exporters.evaluate import Evaluator
from exporters.patterns.base import Refusal
from exporters.patterns.group_query import GroupQueryMatch, GroupQueryPattern
from exporters.patterns.multihead import MultiHeadPattern
from tests.exporters.patterns.sites import match

BATCH, NEW, PAST, HEADS, KEY_HEADS, SIZE = 2, 3, 4, 4, 2, 8
TOTAL = PAST + NEW


class Cached(nn.Module):
    """Grouped queries behind a cache; ``window`` positions are seen, the scores bounded by ``cap``."""

    def __init__(self, window: int = 100, cap: float = 0.0, size: int = SIZE) -> None:
        super().__init__()
        self.window, self.cap, self.size = window, cap, size
        self.q = nn.Linear(HEADS * size, HEADS * size)
        self.kv = nn.Linear(HEADS * size, 2 * KEY_HEADS * size)

    def mask(self, kept):
        query = torch.arange(NEW)[:, None] + kept.shape[1] - NEW
        key = torch.arange(kept.shape[1])[None, :]
        seen = (key <= query) & (key > query - self.window)
        return seen[None, None] & kept[:, None, None, :].bool()

    def attend(self, q, k, v, seen):
        if not self.cap:
            return F.scaled_dot_product_attention(q, k, v, seen, scale=0.3)
        scores = torch.tanh(q @ k.mT * 0.3 / self.cap) * self.cap
        return (scores + torch.where(seen, 0.0, -1e30)).softmax(-1) @ v

    def forward(self, x, attention_mask, past_key, past_value):
        heads = [t.unflatten(-1, (-1, self.size)).transpose(1, 2) for t in (self.q(x), self.kv(x))]
        q, (k, v) = heads[0], heads[1].chunk(2, dim=1)
        k, v = torch.cat([past_key, k], -2), torch.cat([past_value, v], -2)
        wide = [t.repeat_interleave(HEADS // KEY_HEADS, 1) for t in (k, v)]
        return self.attend(q, *wide, self.mask(attention_mask)).transpose(1, 2).flatten(2), k, v


def inputs(size: int = SIZE) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    kept = torch.ones(BATCH, TOTAL, dtype=torch.int64)
    kept[1, :2] = 0
    past = (torch.randn(BATCH, KEY_HEADS, PAST, size) for _ in range(2))
    names = ("x", "attention_mask", "past_key", "past_value")
    return dict(zip(names, (torch.randn(BATCH, NEW, HEADS * size), kept, *past), strict=True))


def computed(found: GroupQueryMatch, run: Evaluator) -> torch.Tensor:
    """``com.microsoft::GroupQueryAttention`` as its documentation defines it, with the mask as bias."""
    q, k, v = (run(operand.node) for operand in (found.query, found.key, found.value))
    assert found.cache is not None
    k, v = (torch.cat([run(p.past), new], -2) for p, new in zip(found.cache, (k, v), strict=True))
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    scores = q @ k.mT * found.scores.scale
    cap = found.scores.softcap
    scores = cap * torch.tanh(scores / cap) if cap else scores
    bias = run(found.scores.mask)
    scores = scores.masked_fill(~bias, -math.inf) if bias.dtype is torch.bool else scores + bias
    return scores.softmax(-1) @ v


@pytest.mark.parametrize("site", [Cached(), Cached(cap=1.7), Cached(window=3, cap=0.5)])
def test_what_is_matched_computes_the_same(site):
    given = inputs()
    found, captured, graph = match(site, given, pattern=GroupQueryPattern())
    assert isinstance(found, GroupQueryMatch), found.why
    assert found.scores.softcap == pytest.approx(site.cap)
    nodes = {n.name: n for n in captured.program.graph.nodes}
    run = Evaluator(graph, {nodes[name]: value for name, value in given.items()})
    joined = computed(found, run).transpose(1, 2).flatten(2)
    torch.testing.assert_close(joined, site(**given)[0])
    assert found.mask.causal
    assert found.mask.padding is nodes["attention_mask"]
    assert found.key.node.meta["val"].shape[1] == KEY_HEADS


@pytest.mark.parametrize(("window", "read"), [(3, 3), (100, None)])
def test_a_window_is_read_where_it_is_felt(window, read):
    found, _, _ = match(Cached(window=window), inputs(), pattern=GroupQueryPattern())
    assert isinstance(found, GroupQueryMatch)
    assert found.mask.window == read


class Bidirectional(Cached):
    def mask(self, kept):
        return kept[:, None, None, :].bool().expand(-1, -1, NEW, -1)


class Prefix(Cached):
    """The first tokens see each other: more than a causal mask lets through."""

    def mask(self, kept):
        return Cached.mask(self, kept) | (torch.arange(TOTAL) < PAST + 2)


class Recomputed(Cached):
    def forward(self, x, attention_mask, past_key, past_value):
        return Cached.forward(self, x, attention_mask, past_key * 2, past_value * 2)


class MaskedBefore(Cached):
    """A mask inside the bound hides nothing: tanh makes -1 of it."""

    def attend(self, q, k, v, seen):
        scores = q @ k.mT * 0.3 + torch.where(seen, 0.0, -1e30)
        return (torch.tanh(scores) * 2).softmax(-1) @ v


@pytest.mark.parametrize(
    ("site", "reason"),
    [
        (Bidirectional(), "more than to hide padding"),
        (Prefix(), "more than to hide padding"),
        (Recomputed(), "neither a cache nor a soft cap"),
        (MaskedBefore(), "masked before they are bounded"),
        (Cached(size=12), "not a multiple of 8"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_the_operator_does_not_compute_is_refused_with_the_reason(site, reason):
    found, _, _ = match(site, inputs(site.size), pattern=GroupQueryPattern())
    assert isinstance(found, Refusal)
    assert reason in found.why


def test_no_other_operator_takes_a_soft_cap():
    found, _, _ = match(Cached(cap=1.7), inputs(), pattern=MultiHeadPattern())
    assert isinstance(found, Refusal)
    assert "a soft cap of 1.7" in found.why
