"""Random small transformers whose roles are known, because they were built so."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from policies.roles import Role

Truth = dict[Role, list[tuple[str, tuple[int, ...]]]]
"""For each role the weights that play it, each with its output channels, in order of the layers."""

LAYOUTS = ("separate", "blocks", "grouped")
KINDS = ("linear", "conv1d", "conv", "bare", "own")
VOCABULARY, LENGTH = 11, 5


@dataclass(frozen=True)
class Architecture:
    """What can differ.

    Attributes:
        layout: ``separate`` projections, ``blocks`` of q, k, v in one weight (thirds, or unequal with
            fewer key heads), or ``grouped``: the query heads of a group, its key, its value, and so on.
        kind: ``linear`` modules, transformers' ``conv1d`` (in, out), 1x1 ``conv``olutions, ``bare``
            (``F.linear`` on the weight of a module that is never called), or a weight of its ``own``.
    """

    layout: str
    kind: str
    head: int
    heads: int
    groups: int
    depth: int
    bias: bool
    gated: bool
    explicit: bool
    causal: bool
    shared: bool
    tokens: bool
    tied: bool
    running: bool
    seed: int

    @property
    def width(self) -> int:
        return self.head * self.heads

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Channels of query, key and value."""
        return self.width, self.head * self.groups, self.head * self.groups


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    heads = draw(st.sampled_from([1, 2, 4]))
    tokens = draw(st.booleans())
    return Architecture(
        layout=draw(st.sampled_from(LAYOUTS)),
        kind=draw(st.sampled_from(KINDS)),
        head=draw(st.sampled_from([4, 6, 8])),
        heads=heads,
        groups=draw(st.sampled_from([g for g in (1, 2, 4) if heads % g == 0])),
        depth=draw(st.integers(1, 2)),
        bias=draw(st.booleans()),
        gated=draw(st.booleans()),
        explicit=draw(st.booleans()),
        causal=draw(st.booleans()),
        shared=draw(st.booleans()),
        tokens=tokens,
        tied=tokens and draw(st.booleans()),
        running=draw(st.booleans()),
        seed=draw(st.integers(0, 99)),
    )


class Conv1D(nn.Module):
    """As in transformers: the weight is (in, out)."""

    def __init__(self, out: int, into: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(into, out) / math.sqrt(into))
        self.bias = nn.Parameter(torch.randn(out) / 10 if bias else torch.zeros(out))

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight)
        return flat.view(*x.shape[:-1], -1)


def make(kind: str, into: int, out: int, bias: bool) -> nn.Module:
    if kind == "conv1d":
        return Conv1D(out, into, bias)
    if kind == "conv":
        return nn.Conv1d(into, out, 1, bias=bias)
    return nn.Linear(into, out, bias=bias)


def call(kind: str, module: nn.Module, x: Tensor) -> Tensor:
    if kind == "conv":
        return module(x.transpose(1, 2)).transpose(1, 2)
    if kind == "bare":
        return F.linear(x, module.weight, module.bias)
    return module(x)


class Attention(nn.Module):
    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.a = a
        names = ("one", "two", "three") if a.layout == "separate" else ("packed",)
        sizes = a.sizes if a.layout == "separate" else (sum(a.sizes),)
        for name, size in zip(names, sizes, strict=True):
            if a.kind == "own":
                weight = torch.randn(size, a.width) / math.sqrt(a.width)
                self.register_parameter(name, nn.Parameter(weight))
            else:
                self.add_module(name, make(a.kind, a.width, size, a.bias))
        self.last = make(a.kind, a.width, a.width, a.bias)

    def project(self, name: str, x: Tensor) -> Tensor:
        owner = getattr(self, name)
        return F.linear(x, owner) if self.a.kind == "own" else call(self.a.kind, owner, x)

    def operands(self, x: Tensor) -> list[Tensor]:
        a = self.a
        if a.layout == "separate":
            found = [self.project(name, x) for name in ("one", "two", "three")]
        elif a.layout == "blocks":
            found = list(self.project("packed", x).split(a.sizes, -1))
        else:
            each = a.heads // a.groups
            packed = self.project("packed", x).unflatten(-1, (a.groups, each + 2, a.head))
            parts = (packed[..., :each, :], packed[..., each, :], packed[..., each + 1, :])
            found = [part.flatten(2) for part in parts]
        return [part.unflatten(-1, (-1, a.head)).transpose(1, 2) for part in found]

    def forward(self, x: Tensor) -> Tensor:
        a = self.a
        q, k, v = self.operands(x)
        if a.groups < a.heads:
            k, v = (t.repeat_interleave(a.heads // a.groups, 1) for t in (k, v))
        if a.explicit:
            scores = q @ k.transpose(-1, -2) / math.sqrt(a.head)
            if a.causal:
                hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
                scores = scores.masked_fill(hidden, -torch.inf)
            mixed = scores.softmax(-1) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=a.causal)
        kind = "linear" if a.kind == "own" else a.kind
        return call(kind, self.last, mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.kind = "linear" if a.kind in ("own", "bare") else a.kind
        self.mixer = Attention(a)
        self.before, self.between = nn.LayerNorm(a.width), nn.LayerNorm(a.width)
        self.wide = make(self.kind, a.width, 2 * a.width, a.bias)
        self.valve = make(self.kind, a.width, 2 * a.width, a.bias) if a.gated else None
        self.narrow = make(self.kind, 2 * a.width, a.width, a.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.before(x))
        y = self.between(x)
        up = call(self.kind, self.wide, y)
        gate = None if self.valve is None else call(self.kind, self.valve, y)
        active = F.gelu(up) if gate is None else F.silu(gate) * up
        return x + call(self.kind, self.narrow, active)


class Net(nn.Module):
    """Tokens (B, T) or vectors (B, T, width) in, logits out."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.a = a
        self.table = nn.Embedding(VOCABULARY, a.width) if a.tokens else None
        count = 1 if a.shared else a.depth
        self.stack = nn.ModuleList(Block(a) for _ in range(count))
        self.norm = nn.BatchNorm1d(a.width) if a.running else nn.LayerNorm(a.width)
        self.out = nn.Linear(a.width, VOCABULARY if a.tied else 3, bias=not a.tied)
        if a.tied:
            self.out.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.table is None else self.table(x)
        for index in range(self.a.depth):
            x = self.stack[index % len(self.stack)](x)
        return self.out(self.norm(x.mean(1)))


def build(a: Architecture) -> Net:
    """The model, in fp32 and eval mode, with the same weights each time."""
    with torch.random.fork_rng():
        torch.manual_seed(a.seed)
        return Net(a).eval()


def inputs(a: Architecture, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if a.tokens:
        return torch.randint(VOCABULARY, (3, LENGTH), generator=generator)
    return torch.randn(3, LENGTH, a.width, generator=generator)


def truth(a: Architecture) -> Truth:
    """Who plays which role, by construction."""
    found: Truth = defaultdict(list)
    for index in range(1 if a.shared else a.depth):
        block = f"stack.{index}"
        for role, name, rows in zip(_ROLES, _names(a), _rows(a), strict=True):
            suffix = "" if a.kind == "own" else ".weight"
            found[role].append((f"{block}.mixer.{name}{suffix}", rows))
        found[Role.ATTENTION_OUTPUT].append((f"{block}.mixer.last.weight", _all(a.width)))
        found[Role.UP].append((f"{block}.wide.weight", _all(2 * a.width)))
        if a.gated:
            found[Role.GATE].append((f"{block}.valve.weight", _all(2 * a.width)))
        found[Role.DOWN].append((f"{block}.narrow.weight", _all(a.width)))
    return dict(found)


_ROLES = (Role.QUERY, Role.KEY, Role.VALUE)


def _names(a: Architecture) -> tuple[str, ...]:
    return ("one", "two", "three") if a.layout == "separate" else ("packed",) * 3


def _rows(a: Architecture) -> list[tuple[int, ...]]:
    q, k, v = a.sizes
    if a.layout == "separate":
        return [_all(q), _all(k), _all(v)]
    channels = list(range(q + k + v))
    if a.layout == "blocks":
        parts = [channels[:q], channels[q : q + k], channels[q + k :]]
    else:
        each, h = a.heads // a.groups, a.head
        period = (each + 2) * h
        place = [channel % period for channel in channels]
        bounds = ((0, each * h), (each * h, (each + 1) * h), ((each + 1) * h, period))
        parts = [[c for c in channels if low <= place[c] < high] for low, high in bounds]
    return [tuple(part) for part in parts]


def _all(count: int) -> tuple[int, ...]:
    return tuple(range(count))
