"""What the attention pattern takes, it describes exactly; what it does not take, it refuses with the reason."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from exporters.patterns.attention import AttentionMatch
from exporters.patterns.base import Refusal
from tests.exporters.patterns.sites import Site, Spelled, fused, match

LAYOUTS = ("thirds", "separate", "chunks", "interleaved", "size-first")


@settings(max_examples=20, deadline=None)
@given(
    heads=st.integers(1, 4),
    size=st.integers(1, 5),
    length=st.integers(1, 6),
    layout=st.sampled_from(LAYOUTS),
    bias=st.booleans(),
    spelling=st.sampled_from(["sdpa", "query", "key", "scores"]),
)
def test_whatever_the_spelling_the_operator_computes_the_same(
    heads, size, length, layout, bias, spelling
):
    torch.manual_seed(heads + 10 * size)
    if spelling == "sdpa":
        site = Site(heads, size, layout, bias)
    else:
        site = Spelled(heads, size, layout, bias, scaled=spelling)
    x = torch.randn(2, length, heads * size)
    found, _, _ = match(site, x)
    assert isinstance(found, AttentionMatch), found.why
    assert found.heads == heads
    torch.testing.assert_close(fused(found, site.norm(x)), site(x))


def test_a_projection_of_flattened_rows_is_matched():
    class Flat(Site):
        """As transformers' Conv1D does it."""

        def split(self, x):
            qkv = torch.addmm(self.qkv.bias, x.view(-1, x.shape[-1]), self.qkv.weight.t())
            parts = qkv.view(*x.shape[:2], -1).split(self.heads * self.size, dim=2)
            return [p.view(*x.shape[:2], self.heads, self.size).transpose(1, 2) for p in parts]

    site, x = Flat(2, 3), torch.randn(2, 5, 6)
    found, _, _ = match(site, x)
    assert isinstance(found, AttentionMatch)
    torch.testing.assert_close(fused(found, site.norm(x)), site(x))


class TalkingHeads(Spelled):
    def __init__(self, before: bool) -> None:
        super().__init__(2, 3)
        self.before, self.mix = before, nn.Linear(2, 2)

    def attend(self, q, k, v, **_):
        scores = self.scores(q, k)
        if self.before:
            scores = self.mix(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        probabilities = scores.softmax(-1)
        if not self.before:
            probabilities = self.mix(probabilities.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return probabilities @ v


class Swapped(Spelled):
    """The scores of one head are used for the other: a move, but not one that may be ignored."""

    def attend(self, q, k, v, **_):
        batch, heads, length, _ = q.shape
        scores = self.scores(q, k).view(batch, length, heads, length).transpose(1, 2)
        return scores.softmax(-1) @ v


class QueryNorm(Site):
    def attend(self, q, k, v, **_):
        return F.scaled_dot_product_attention(F.layer_norm(q, q.shape[-1:]), k, v)


class Cross(Site):
    def __init__(self) -> None:
        super().__init__(2, 3, "separate")

    def split(self, x):
        q, _, _ = super().split(x)
        _, k, v = super().split(x.flip(1))
        return [q, k, v]


class Rolled(Site):
    """Keys are moved along the length: the channels are right, the rows are not."""

    def split(self, x):
        q, k, v = super().split(x)
        return [q, k.view(k.shape[0], k.shape[1], -1, 3).transpose(1, 2).reshape(k.shape), v]


class Batched(Spelled):
    """Heads folded into the batch."""

    def attend(self, q, k, v, **_):
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        attended = torch.bmm(self.scores(q, k).softmax(-1), v)
        return attended.unflatten(0, (-1, self.heads))


class WrongAxis(Spelled):
    def attend(self, q, k, v, **_):
        return self.scores(q, k).softmax(-2) @ v


class InSteps(Spelled):
    def attend(self, q, k, v, **_):
        return self.scores(q, k).log_softmax(-1).exp() @ v


class Watched(Spelled):
    def attend(self, q, k, v, **_):
        probabilities = self.scores(q, k).softmax(-1)
        return probabilities @ v + probabilities.mean()


class Gated(Spelled):
    def attend(self, q, k, v, **_):
        return self.scores(q, k).tanh().softmax(-1) @ v


class Shared(Site):
    def split(self, x):
        q, k, v = super().split(x)
        return [q, k[:, :1], v[:, :1]]

    def attend(self, q, k, v, **_):
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


class Joined(Site):
    """The heads are joined in another order than their channels."""

    def join(self, attended):
        batch, _, length, _ = attended.shape
        return attended.permute(0, 2, 3, 1).reshape(batch, length, -1)


class Leaking(Site):
    def forward(self, x, attention_mask=None):
        q, k, v = self.split(self.norm(x))
        return self.join(self.attend(q, k, v)) + k.mean()


class Projection(nn.Linear):
    """Legal in torch, and no (out, in) weight with an (out,) bias."""

    def __init__(self, kind: str) -> None:
        super().__init__(6, 18)
        self.kind, self.row = kind, nn.Parameter(torch.randn(1, 18))

    def forward(self, x):
        if self.kind == "batched":
            return x @ self.weight.T[None]
        if self.kind == "one":
            return F.linear(x, self.weight, self.bias[:1])
        return torch.addmm(self.row, x.flatten(0, 1), self.weight.T).unflatten(0, x.shape[:2])


class Raw(Site):
    def __init__(self, kind: str) -> None:
        super().__init__(2, 3)
        self.qkv = Projection(kind)


@pytest.mark.parametrize(
    ("site", "reason"),
    [
        (Raw("batched"), "query is projected by a weight of shape (1, 6, 18)"),
        (Raw("one"), "query is projected by a bias of shape (1,) for 18 outputs"),
        (Raw("row"), "query is projected by a bias of shape (1, 18) for 18 outputs"),
        (TalkingHeads(before=True), "scores pass through linear before the softmax"),
        (TalkingHeads(before=False), "probabilities pass through"),
        (Swapped(2, 3), "the scores are rearranged"),
        (QueryNorm(2, 3), "query passes through layer_norm"),
        (Cross(), "cross attention"),
        (Rolled(2, 3), "key is not a plain arrangement"),
        (Batched(2, 3), "no dimension for heads"),
        (WrongAxis(2, 3), "the softmax runs over dimension -2"),
        (InSteps(2, 3), "the softmax is spelled out in steps"),
        (Watched(2, 3), "the attention probabilities are read more than once"),
        (Gated(2, 3), "scores pass through tanh"),
        (Shared(2, 3), "2 query heads share 1 key heads"),
        (Joined(2, 3), "the result"),
        (Leaking(2, 3), "a projection is read outside the attention"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_no_operator_computes_is_refused_with_the_reason(site, reason):
    found, _, _ = match(site, torch.randn(2, 4, 6))
    assert isinstance(found, Refusal)
    assert reason in found.why
