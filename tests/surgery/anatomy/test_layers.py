"""Depth: which of the numbers in a module path count blocks, and which tell siblings apart."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import surgery

WIDTH, HEADS = 16, 4
X = torch.randn(2, 10, WIDTH)


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH // HEADS) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(-2, -1)
        return scores.softmax(-1) @ self.value(x)


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(Head() for _ in range(HEADS))
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(torch.cat([head(x) for head in self.heads], -1))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(F.scaled_dot_product_attention(*self.qkv(x).chunk(3, -1)))


def feed_forward() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 64), nn.ReLU(), nn.Linear(64, WIDTH))


class Experts(nn.Module):
    """A dense mixture: every token goes through all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, 3)
        self.experts = nn.ModuleList(feed_forward() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        shares = self.gate(x).softmax(-1).unbind(-1)
        mixed = [s[..., None] * e(x) for s, e in zip(shares, self.experts, strict=True)]
        return torch.stack(mixed).sum(0)


class Block(nn.Module):
    def __init__(self, attention: type[nn.Module] = Heads, net: type[nn.Module] | None = None):
        super().__init__()
        self.attention, self.net = attention(), net() if net else feed_forward()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.net(x)


class Repeated(nn.Module):
    """The same blocks twice over: heads of the second round follow those of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block())

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.blocks(x))


class Apart(nn.Module):
    """Attentions in one list, what follows them in another."""

    def __init__(self) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(Attention() for _ in range(3))
        self.mixtures = nn.ModuleList(Experts() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for attention, mixture in zip(self.attentions, self.mixtures, strict=True):
            x = x + attention(x)
            x = x + mixture(x)
        return x


class Stages(nn.Module):
    """Blocks within stages: both numbers count."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.Sequential(*(nn.Sequential(Block(), Block()) for _ in range(2)))

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(x)


class Towers(nn.Module):
    """Two stacks beside one another, each with layers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.towers = nn.ModuleList(nn.Sequential(Block(), Block()) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return sum((tower(x) for tower in self.towers), torch.zeros(()))


def each(layers: Iterable[int], times: int) -> list[int]:
    return [layer for layer in layers for _ in range(times)]


def layers(model: nn.Module) -> tuple[int, list[int | None], list[int | None]]:
    anatomy = surgery.read(model, X)
    return (
        anatomy.depth,
        [site.layer for site in anatomy.sites],
        [block.layer for block in anatomy.feed_forward],
    )


def gpt() -> nn.Module:
    return nn.Sequential(Block(), Block(), Block())


def test_heads_in_a_list_share_the_layer_of_their_block() -> None:
    assert layers(gpt()) == (3, each(range(3), HEADS), [0, 1, 2])


@pytest.mark.parametrize(("depth", "block"), [("first 1", "0."), ("last 1", "2.")])
def test_depth_selects_whole_blocks(depth: str, block: str) -> None:
    model = gpt()
    anatomy = surgery.read(model, X)
    for role, count in {"attention.query": HEADS, "mlp.up": 1}.items():
        policy = {"select": [{"roles": [role], "depth": depth}], "adapter": "lora"}
        plan = surgery.plan(model, policy, anatomy=anatomy, rank=2)
        names = [operation.projection.module for operation in plan.operations]
        assert len(names) == count and all(name.startswith(block) for name in names)


def test_heads_of_the_only_block_are_no_layers() -> None:
    assert layers(nn.Sequential(Block())) == (1, each([0], HEADS), [0])
    assert layers(Block()) == (0, [None] * HEADS, [None])


def test_heads_that_run_again_still_lie_side_by_side() -> None:
    assert layers(Repeated()) == (2, each(range(2), HEADS), [0, 1])


def test_experts_in_a_list_share_a_layer() -> None:
    assert layers(Block(Attention, Experts)) == (0, [None], [None] * 3)
    assert layers(Apart()) == (6, [0, 1, 2], each([3, 4, 5], 3))


def test_blocks_within_stages_and_towers_are_counted() -> None:
    expected = 4, each(range(4), HEADS), [0, 1, 2, 3]
    assert layers(Stages()) == layers(Towers()) == expected
