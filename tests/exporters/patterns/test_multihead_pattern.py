"""The operands are taken as they are: the operator's definition, in plain PyTorch, gives the result."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from exporters.evaluate import Evaluator
from exporters.patterns.base import Refusal
from exporters.patterns.multihead import MultiHeadMatch, MultiHeadPattern, Operand
from exporters.patterns.scores import Replay
from surgery.anatomy.graph import op_name
from tests.exporters.patterns.sites import Site, Spelled, match


class Rotary(Site):
    def attend(self, q, k, v, **_):
        angle = torch.arange(q.shape[2])[:, None] * torch.tensor([1.0, 0.1, 1.0, 0.1])
        q, k = (
            x * angle.cos() + torch.cat([-x[..., 2:], x[..., :2]], -1) * angle.sin() for x in (q, k)
        )
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class QueryNorm(Site):
    def attend(self, q, k, v, **_):
        return F.scaled_dot_product_attention(F.layer_norm(q, q.shape[-1:]), k, v)


class Cross(Site):
    """Fewer queries than keys."""

    def __init__(self) -> None:
        super().__init__(2, 4, "separate")

    def split(self, x):
        q, k, v = super().split(x)
        return [q[:, :, :3], k, v]


class Grouped(Site):
    def split(self, x):
        q, k, v = super().split(x)
        return [q, k[:, ::2], v[:, ::2]]

    def attend(self, q, k, v, **_):
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


class Batched(Spelled):
    """Heads folded into the batch, as BART once did it."""

    def attend(self, q, k, v, **_):
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        weights = torch.bmm(q * 0.4, k.transpose(1, 2)).softmax(-1)
        return torch.bmm(weights, v).unflatten(0, (-1, self.heads))


class ByHead(Spelled):
    """As Swin V2: a learned temperature for each head, and a bias."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.temperature = nn.Parameter(torch.rand(self.heads, 1, 1))
        self.bias = nn.Parameter(torch.randn(self.heads, 5, 5))

    def scores(self, q, k):
        return q @ k.mT * self.temperature.exp() + self.bias


class ScaledMask(ByHead):
    def scores(self, q, k):
        return (q @ k.mT + self.bias) * self.temperature


class Alibi(Spelled):
    """As BLOOM: a bias for each head goes into the product, heads are part of the batch and then not."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.slopes = nn.Parameter(torch.randn(self.heads, 1, 5))

    def attend(self, q, k, v, **_):
        batch = q.shape[0]
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        slopes = self.slopes.repeat(batch, 1, 1)
        scores = slopes.baddbmm(batch1=q, batch2=k.mT, beta=1, alpha=0.4)
        hidden = torch.full((5, 5), -1e30).triu(1)
        weights = (scores.unflatten(0, (batch, -1)) + hidden).softmax(-1).flatten(0, 1)
        return torch.bmm(weights, v).unflatten(0, (batch, -1))


class OneHead(Spelled):
    """As torch's own nn.MultiheadAttention: nothing between the product, which adds the mask, and the softmax."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.mask = nn.Parameter(torch.randn(1, 5, 5))

    def attend(self, q, k, v, **_):
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        scores = self.mask.expand(len(q), -1, -1).baddbmm(q, k.mT, alpha=0.4)
        return torch.bmm(scores.softmax(-1), v)[:, None]


class BiasFirst(Spelled):
    """What is added to the product stands before it; the second time it is a product itself."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.bias = nn.Parameter(torch.randn(2, self.heads, 5, 5))
        self.table = nn.Parameter(torch.randn(self.size, 5))

    def scores(self, q, k):
        return self.bias + (q @ self.table + q @ k.mT * 0.4)


class Whole(Site):
    """A scale that is a whole number."""

    def attend(self, q, k, v, **_):
        return F.scaled_dot_product_attention(q, k, v, scale=1)


class Split(Site):
    """The attended values fall into parts before anything else."""

    def join(self, attended):
        return torch.cat([part.sin() for part in attended.split(3, 2)], 2)


class Unjoined(Site):
    def join(self, attended):
        return attended * 2


class Biased(Site):
    """A mask without a batch dimension, and one bias for all queries."""

    def __init__(self, *args, shape=(4, 5, 5)) -> None:
        super().__init__(*args)
        self.table = nn.Parameter(torch.randn(shape))

    def attend(self, q, k, v, **_):
        return F.scaled_dot_product_attention(q, k, v, self.table)


def values(operand: Operand, run: Evaluator) -> torch.Tensor:
    value = run(operand.node)
    for factor in operand.factors:
        value = value * run(factor)
    value = value.mT if operand.transposed else value
    value = value if value.ndim == 4 else value[:, None]
    return value.repeat_interleave(operand.repeats, 1)


def addend(mask: fx.Node | Replay, scores: torch.Tensor, run: Evaluator) -> torch.Tensor | fx.Node:
    if not isinstance(mask, Replay):
        return run(mask)
    start = torch.zeros_like(scores)
    if op_name(mask.product) == "baddbmm":
        start = run(mask.product.args[0]).expand(scores.shape[0], *scores.shape[2:])
    given = {node: value for node, value in run.values.items() if node.op == "placeholder"}
    found = Evaluator(run.graph, {**given, mask.product: start})((mask.product, *mask.nodes)[-1])
    return found.reshape(scores.shape)


def computed(found: MultiHeadMatch, run: Evaluator) -> torch.Tensor:
    """``com.microsoft::MultiHeadAttention`` as its documentation defines it, (batch, heads, length, size)."""
    q, k, v = (values(operand, run) for operand in (found.query, found.key, found.value))
    scores = q @ k.mT * found.scale
    if found.mask.causal:
        scores = scores + torch.full(scores.shape[-2:], -1e4).triu(1)
    if found.mask.bias is not None:
        scores = scores + addend(found.mask.bias, scores, run)
    return scores.softmax(-1) @ v


@pytest.mark.parametrize(
    "site",
    [
        Site(4, 4),
        Rotary(4, 4),
        QueryNorm(4, 4),
        Cross(),
        Grouped(4, 4),
        Batched(4, 4),
        Alibi(4, 4),
        OneHead(1, 4),
        BiasFirst(4, 4),
        Whole(4, 4),
        Unjoined(4, 4),
        Split(4, 4),
        Spelled(4, 4),
        Biased(4, 4),
        ByHead(4, 4),
        ScaledMask(4, 4),
        Biased(4, 4, shape=(1, 5)),
    ],
    ids=lambda site: type(site).__name__,
)
def test_whatever_made_the_operands_the_operator_computes_the_same(site):
    x = torch.randn(2, 5, site.heads * site.size)
    found, captured, graph = match(site, x, pattern=MultiHeadPattern())
    assert isinstance(found, MultiHeadMatch), found.why
    (placeholder,) = [n for n in captured.program.graph.nodes if n.name == "x"]
    run = Evaluator(graph, {placeholder: x})
    result = run(found.result)
    torch.testing.assert_close(
        computed(found, run), result if result.ndim == 4 else result[:, None]
    )
    if found.gathered is not None:
        joined = result.transpose(1, 2).flatten(2)
        torch.testing.assert_close(run(found.gathered.node).reshape(joined.shape), joined)
    for operand in (found.query, found.key, found.value):
        if operand.flat is not None:
            torch.testing.assert_close(
                run(operand.flat), values(operand, run).transpose(1, 2).flatten(2)
            )


@pytest.mark.parametrize("layout", ["thirds", "separate", "chunks"])
def test_heads_side_by_side_in_the_graph_are_not_rearranged(layout):
    found, _, _ = match(Site(2, 3, layout), torch.randn(2, 5, 6), pattern=MultiHeadPattern())
    given = [operand.flat is not None for operand in (found.query, found.key, found.value)]
    assert given == [layout != "thirds"] * 3


class Mixed(Spelled):
    """Talking heads."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.mix = nn.Linear(2, 2)

    def attend(self, q, k, v, **_):
        scores = self.mix(self.scores(q, k).permute(0, 2, 3, 1))
        return scores.permute(0, 3, 1, 2).softmax(-1) @ v


class Watched(Spelled):
    def attend(self, q, k, v, **_):
        probabilities = self.scores(q, k).softmax(-1)
        return probabilities @ v + probabilities.mean()


class Capped(Spelled):
    def attend(self, q, k, v, **_):
        return self.scores(q, k).tanh().softmax(-1) @ v


class Doubled(Spelled):
    """``baddbmm`` with a factor on what it adds."""

    def attend(self, q, k, v, **_):
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        scores = torch.ones(1, 1, 1).baddbmm(q, k.mT, beta=2)
        return torch.bmm(scores.softmax(-1), v).unflatten(0, (-1, self.heads))


class CausalCross(Cross):
    def attend(self, q, k, v, **_):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class Unscaled(Site):
    def attend(self, q, k, v, **_):
        return F.scaled_dot_product_attention(q, k, v, scale=0.0)


class Nothing(Spelled):
    def scores(self, q, k):
        return (q @ k.mT) * 0.0


class FoldedByHead(Spelled):
    """Heads are part of the batch in the product, and apart where each gets its temperature."""

    def attend(self, q, k, v, **_):
        batch, length = q.shape[0], q.shape[2]
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        scores = torch.bmm(q, k.mT).view(batch, self.heads, length, length)
        weights = (scores * torch.ones(self.heads, 1, 1)).softmax(-1).flatten(0, 1)
        return torch.bmm(weights, v).unflatten(0, (batch, -1))


@pytest.mark.parametrize(
    ("site", "reason"),
    [
        (Unscaled(2, 3), "multiplied with 0"),
        (Nothing(2, 3), "multiplied with 0"),
        (FoldedByHead(2, 3), "multiplied with (2, 1, 1), and the query is (4, 5, 3)"),
        (Mixed(2, 3), "scores pass through linear"),
        (Watched(2, 3), "the attention probabilities are read more than once"),
        (Capped(2, 3), "scores pass through tanh"),
        (Doubled(2, 3), "with a factor on its mask"),
        (CausalCross(), "a causal mask over 3 queries and 5 keys"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_the_operator_does_not_compute_is_refused_with_the_reason(site, reason):
    x = torch.randn(2, 5, site.heads * site.size)
    found, _, _ = match(site, x, pattern=MultiHeadPattern())
    assert isinstance(found, Refusal)
    assert reason in found.why


class TwoInputs(CausalCross):
    """Queries and keys may be as many, and need not."""

    def split(self, x):
        return Site.split(self, x)

    def forward(self, x, y):
        q, _, _ = self.split(x)
        _, k, v = self.split(y)
        return self.join(self.attend(q, k, v))


def test_two_dynamic_lengths_that_are_equal_by_chance_are_two():
    x, y = torch.randn(2, 2, 5, 8)
    axes = {"x": {0: "batch", 1: "sequence"}, "y": {0: "batch", 1: "other"}}
    found, _, _ = match(TwoInputs(), (x, y), axes, MultiHeadPattern())
    assert isinstance(found, Refusal) and "two lengths" in found.why
