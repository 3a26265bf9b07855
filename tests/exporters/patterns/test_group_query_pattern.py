"""A causal decoder's attention: what is matched computes, by the operator's definition, what the graph computes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from exporters.capture import capture
from exporters.evaluate import Evaluator
from exporters.inputs import collect
from exporters.patterns.base import Refusal
from exporters.patterns.group_query import GroupQueryPattern
from exporters.patterns.group_query_match import GroupQueryMatch
from exporters.patterns.multihead import MultiHeadPattern
from surgery.anatomy.attention import find_cores
from surgery.anatomy.flow import Flow
from surgery.anatomy.graph import Graph
from surgery.anatomy.linears import LinearReader
from tests.exporters.conftest import lively
from tests.exporters.patterns.sites import match

BATCH, NEW, PAST, HEADS, KEY_HEADS, SIZE = 2, 3, 4, 4, 2, 8
TOTAL = PAST + NEW
ROTATED, POSITIONS = 32, 40


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


class Rotated(nn.Module):
    """Rotates query and key by tables for its position, counted in the padding mask if ``counts``."""

    def __init__(
        self, interleaved: bool = False, counts: bool = False, turned: int = ROTATED
    ) -> None:
        super().__init__()
        self.interleaved, self.counts, self.turned = interleaved, counts, turned
        self.qkv = nn.Linear(HEADS * ROTATED, (HEADS + 2 * KEY_HEADS) * ROTATED)

    def angles(self, x, attention_mask):
        places = torch.arange(x.shape[1]).expand(x.shape[:2])
        places = attention_mask.cumsum(-1) - 1 if self.counts else places
        return places[:, None, :, None] / 10 ** torch.linspace(0, 2, self.turned // 2)

    def rotate(self, t, angles):
        if self.interleaved:
            angles = angles.repeat_interleave(2, -1)
            turned = torch.stack([-t[..., 1::2], t[..., ::2]], -1).flatten(-2)
            return t * angles.cos() + turned * angles.sin()
        t, rest = t[..., : self.turned], t[..., self.turned :]
        first, second = t.chunk(2, -1)
        angles = torch.cat([angles, angles], -1)
        whole = t * angles.cos() + torch.cat([-second, first], -1) * angles.sin()
        return torch.cat([whole, rest], -1) if rest.shape[-1] else whole

    def keys(self, k, angles):
        return self.rotate(k, angles)

    def forward(self, x, attention_mask):
        heads = self.qkv(x).unflatten(-1, (-1, ROTATED)).transpose(1, 2)
        q, k, v = heads.split([HEADS, KEY_HEADS, KEY_HEADS], 1)
        angles = self.angles(x, attention_mask)
        q, k = self.rotate(q, angles), self.keys(k, angles)
        k, v = (t.repeat_interleave(HEADS // KEY_HEADS, 1) for t in (k, v))
        seen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        seen = seen[None, None] & attention_mask[:, None, None, :].bool()
        return F.scaled_dot_product_attention(q, k, v, seen).transpose(1, 2).flatten(2)


class OtherKeys(Rotated):
    """Keys are rotated the other way."""

    def keys(self, k, angles):
        return self.rotate(k, -angles)


def sequences() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    kept = torch.ones(BATCH, TOTAL, dtype=torch.int64)
    kept[1, :2] = 0
    return {"x": torch.randn(BATCH, TOTAL, HEADS * ROTATED), "attention_mask": kept}


def match_rotated(site: nn.Module, positions: int | None = POSITIONS):
    axes = {"x": {0: "batch", 1: "sequence"}, "attention_mask": {0: "batch", 1: "sequence"}}
    return match(site, sequences(), axes, GroupQueryPattern(positions))


@pytest.mark.parametrize(
    ("site", "pairs"),
    [(Rotated(), 16), (Rotated(interleaved=True), 16), (Rotated(turned=16), 8)],
    ids=["halves", "neighbours", "part"],
)
def test_without_a_cache_the_rotation_alone_is_a_reason(site, pairs):
    given = sequences()
    found, captured, graph = match_rotated(site)
    assert isinstance(found, GroupQueryMatch), found.why
    assert found.tables is not None and found.cache is None
    assert found.tables.cos.shape == (POSITIONS, pairs)
    nodes = {n.name: n for n in captured.program.graph.nodes}
    run = Evaluator(graph, {nodes[name]: value for name, value in given.items()})
    places = slice(0, TOTAL)
    q, k = (found.tables.rotate(run(part.node), places) for part in (found.query, found.key))
    k, v = (t.repeat_interleave(HEADS // KEY_HEADS, 1) for t in (k, run(found.value.node)))
    mask = run(found.scores.mask)
    joined = F.scaled_dot_product_attention(q, k, v, mask, scale=found.scores.scale)
    torch.testing.assert_close(joined.transpose(1, 2).flatten(2), site(**given))
    assert found.packed is not None and found.packed.products == 1


@pytest.mark.parametrize(
    ("site", "positions"),
    [
        (Rotated(), None),  # the engine takes none
        (Rotated(counts=True), POSITIONS),  # where a row begins is unknown to the operator
        (OtherKeys(), POSITIONS),
        (Rotated(turned=8), POSITIONS),  # not a multiple of 16 channels
    ],
    ids=["not asked for", "counted", "keys otherwise", "eight channels"],
)
def test_a_rotation_that_the_operator_does_not_do_stays_outside(site, positions):
    found, _, _ = match_rotated(site, positions)
    assert isinstance(found, Refusal)
    assert "nor a rotation" in found.why


def test_layers_share_what_is_read_once():
    """Half a table may be 33 MB: 131,072 positions of 64 pairs."""
    model = lively("llama")
    captured = capture(model, collect(model))
    graph = Graph(captured.program)
    cores, _ = find_cores(Flow(graph, LinearReader(graph, model)))
    first, second = (GroupQueryPattern(64).match(core, graph, captured.inputs) for core in cores)
    assert isinstance(first, GroupQueryMatch) and isinstance(second, GroupQueryMatch)
    assert first.tables is not None and first.tables is second.tables
