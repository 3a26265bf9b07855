"""Hand-written attention in many spellings, and the fused operator's definition in plain PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exporters.capture import Captured, capture
from exporters.inputs import collect
from exporters.patterns.attention import AttentionMatch, AttentionPattern
from exporters.patterns.base import HIDDEN
from surgery.anatomy.attention import find_cores
from surgery.anatomy.flow import Flow
from surgery.anatomy.graph import Graph
from surgery.anatomy.linears import LinearReader


class Site(nn.Module):
    """Self-attention without the output projection; ``layout`` is how the heads lie in ``qkv``."""

    def __init__(self, heads: int, size: int, layout: str = "thirds", bias: bool = True) -> None:
        super().__init__()
        width = heads * size
        self.heads, self.size, self.layout = heads, size, layout
        self.norm = nn.LayerNorm(width)
        if layout == "separate":
            self.q, self.k, self.v = (nn.Linear(width, width, bias=bias) for _ in range(3))
        else:
            self.qkv = nn.Linear(width, 3 * width, bias=bias)

    def split(self, x: Tensor) -> list[Tensor]:
        batch, length, _ = x.shape
        heads, size = self.heads, self.size
        if self.layout == "separate":
            parts = (linear(x) for linear in (self.q, self.k, self.v))
            return [p.view(batch, length, heads, size).transpose(1, 2) for p in parts]
        qkv = self.qkv(x)
        if self.layout == "chunks":
            parts = qkv.chunk(3, dim=-1)
            return [p.reshape(batch, length, heads, size).permute(0, 2, 1, 3) for p in parts]
        if self.layout == "interleaved":
            parts = qkv.view(batch, length, heads, 3, size).unbind(3)
            return [p.transpose(1, 2).contiguous() for p in parts]
        if self.layout == "size-first":
            return list(qkv.view(batch, length, size, 3, heads).permute(3, 0, 4, 1, 2).unbind(0))
        return list(qkv.view(batch, length, 3, heads, size).permute(2, 0, 3, 1, 4).unbind(0))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)

    def join(self, attended: Tensor) -> Tensor:
        batch, _, length, _ = attended.shape
        return attended.transpose(1, 2).reshape(batch, length, self.heads * self.size)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        attended = self.attend(*self.split(self.norm(x)), attention_mask=attention_mask)
        return self.join(attended)


class Spelled(Site):
    """A softmax between two products; ``scaled`` says where the factor stands."""

    def __init__(self, *args: Any, scaled: str = "query", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.scaled = scaled

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        if self.scaled == "query":
            return (q * 0.37) @ k.transpose(-2, -1)
        if self.scaled == "key":
            return q @ (k / 3).transpose(-1, -2)
        return (q @ k.mT) * 0.5

    def attend(self, q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:
        return F.dropout(self.scores(q, k).softmax(-1), 0.1, self.training) @ v


def match(
    site: nn.Module, inputs: Any, dynamic: Any = False, pattern: Any = None
) -> tuple[Any, Captured, Graph]:
    """Match the one attention site of a module."""
    site = site.eval()
    captured = capture(site, collect(site, inputs, dynamic))
    graph = Graph(captured.program)
    ((core,), _) = find_cores(Flow(graph, LinearReader(graph, site)))
    found = (pattern or AttentionPattern()).match(core, graph, captured.inputs)
    return found, captured, graph


def fused(
    match: AttentionMatch, x: Tensor, tokens: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """``com.microsoft::Attention`` as its documentation defines it."""
    batch, length, _ = x.shape
    projected = x @ match.weight + (0 if match.bias is None else match.bias)
    heads = (p.unflatten(-1, (match.heads, -1)) for p in projected.split(match.sizes, -1))
    q, k, v = (h.transpose(1, 2) for h in heads)
    scores = q @ k.mT * match.scale
    if match.mask.causal:
        scores = scores + torch.full((length, length), HIDDEN).triu(1)
    if match.mask.padding is not None:
        scores = scores + (tokens == 0)[:, None, None, :] * HIDDEN
    if match.mask.bias is not None:
        scores = scores + bias
    return (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, -1)
