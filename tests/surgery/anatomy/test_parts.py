"""Parts are told by what flows where: modules here are called a, b and c on purpose."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SiglipConfig, SiglipModel, WhisperConfig, WhisperForConditionalGeneration

import surgery
from surgery import Anatomy, AnatomyError

WIDTH, HEADS = 16, 2
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


class Block(nn.Module):
    """Attention from ``x`` to ``memory`` or to itself, then a feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.e, self.f = nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        seen = x if memory is None else memory
        q, k, v = (
            t.unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for t in (self.a(x), self.b(seen), self.c(seen))
        )
        x = x + self.d(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.f(F.gelu(self.e(x)))


class Towers(nn.Module):
    """Patches on one side, tokens on the other; they meet in a product."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.tokens = nn.Conv2d(3, WIDTH, 4, 4), nn.Embedding(9, WIDTH)
        self.a = nn.ModuleList(Block() for _ in range(2))
        self.b = nn.ModuleList(Block() for _ in range(3))

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        x, y = self.patches(one).flatten(2).transpose(1, 2), self.tokens(other)
        for block in self.a:
            x = block(x)
        for block in self.b:
            y = block(y)
        return x.mean(1) @ y.mean(1).T


class Sides(nn.Module):
    """A memory that learned queries look at, after they looked at each other; or a pooling alone."""

    def __init__(self, pooling: bool) -> None:
        super().__init__()
        self.pooling = pooling
        self.queries = nn.Parameter(torch.ones(1, 3, WIDTH))
        self.a = nn.ModuleList(Block() for _ in range(2))
        self.b = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.a:
            x = block(x)
        y = self.queries.expand(len(x), -1, -1)
        return self.b[0](y, x) if self.pooling else self.b[1](self.b[0](y), x)


TOWERS = {"one": torch.ones(2, 3, 8, 8), "other": torch.arange(10).view(2, 5) % 9}


@pytest.fixture(scope="module")
def towers() -> Anatomy:
    return surgery.read(Towers(), TOWERS)


def by_top(anatomy: Anatomy) -> dict[str, set[tuple[str, ...]]]:
    """The parts of all weights below each top module."""
    found: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for p in anatomy.projections:
        found[p.module.partition(".")[0]].add(p.parts)
    return dict(found)


def test_towers_are_told_by_the_input_that_reaches_them(towers: Anatomy) -> None:
    assert by_top(towers) == {"a": {("vision",)}, "b": {("text",)}}
    assert "vision" in str(towers)


def test_sides_are_told_by_cross_attention() -> None:
    anatomy = surgery.read(Sides(pooling=False), torch.ones(2, 6, WIDTH))
    assert by_top(anatomy) == {"a": {("encoder",)}, "b": {("decoder",)}}


def test_a_pooling_by_learned_queries_is_no_decoder() -> None:
    anatomy = surgery.read(Sides(pooling=True), torch.ones(2, 6, WIDTH))
    assert by_top(anatomy) == {"a": {()}, "b": {()}} and "part" not in str(anatomy)


def test_speech_to_text_has_two_parts_on_each_side() -> None:
    config = WhisperConfig(
        vocab_size=40, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, num_mel_bins=8,
        max_source_positions=20, max_target_positions=30, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    anatomy = surgery.read(WhisperForConditionalGeneration(config))
    sides = {"encoder": ("audio", "encoder"), "decoder": ("text", "decoder")}
    for p in anatomy.projections:
        assert p.parts == sides["encoder" if ".encoder." in p.module else "decoder"], p.weight_name


def test_towers_that_share_nothing_but_a_product_keep_their_pooling() -> None:
    text = dict(SMALL, vocab_size=40, max_position_embeddings=16)
    vision = dict(SMALL, image_size=16, patch_size=8)
    anatomy = surgery.read(SiglipModel(SiglipConfig(text_config=text, vision_config=vision)))
    assert by_top(anatomy) == {"vision_model": {("vision",)}, "text_model": {("text",)}}


def test_depth_counts_the_layers_of_the_part(towers: Anatomy) -> None:
    asked = {"select": [{"roles": "query", "part": "text", "depth": "last 2"}], "adapter": "lora"}
    plan = surgery.plan(Towers(), asked, anatomy=towers, rank={"all": 2, "first 2": 4})
    assert {o.projection.module: o.adapter.rank for o in plan.operations} == {
        "b.1.a": 4,
        "b.2.a": 2,
    }
    assert surgery.Plan.from_dict(plan.to_dict()) == plan


def test_a_part_that_is_not_there_is_an_error_that_names_those_that_are(towers: Anatomy) -> None:
    with pytest.raises(AnatomyError, match=r"part 'audio'.*the parts vision, text"):
        surgery.plan(Towers(), "vit-attn-qv", anatomy=towers, part="audio")
    whole = surgery.read(Sides(pooling=True), torch.ones(2, 6, WIDTH))
    with pytest.raises(AnatomyError, match="one piece"):
        surgery.plan(Sides(pooling=True), "vit-attn-qv", anatomy=whole, part="vision")
