"""Linears over tokens between a projection and its attention."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import surgery
from policies.roles import Role

WIDTH, HEADS, TOKENS, FEWER = 16, 4, 10, 4
Mix = Callable[["Linformer", Tensor], Tensor]


class Linformer(nn.Module):
    """Key and value are mixed over the tokens by one matrix, in a way of its own."""

    def __init__(self, mix: Mix, fused: bool = False, spelled: bool = False) -> None:
        super().__init__()
        self.q, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.kv = nn.Linear(WIDTH, 2 * WIDTH)
        self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.linear = nn.Linear(TOKENS, FEWER)
        self.conv = nn.Conv1d(TOKENS, FEWER, 1)
        self.matrix = nn.Parameter(torch.randn(TOKENS, FEWER))
        self.mix, self.fused, self.spelled = mix, fused, spelled

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            k, v = self.mix(self, self.kv(x)).chunk(2, -1)
        else:
            k, v = self.mix(self, self.k(x)), self.mix(self, self.v(x))
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in (self.q(x), k, v))
        if self.spelled:
            attended = torch.einsum("bhij,bhjd->bhid", (q @ k.mT).softmax(-1), v)
        else:
            attended = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(attended.transpose(1, 2).flatten(2))


MIXES: dict[str, Mix] = {
    "linear": lambda model, t: model.linear(t.mT).mT,
    "conv": lambda model, t: model.conv(t),
    "matrix": lambda model, t: torch.einsum("bnd,nk->bkd", t, model.matrix),
}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("spelled", [False, True])
@pytest.mark.parametrize("mix", MIXES)
def test_what_mixes_tokens_is_no_projection(mix: str, spelled: bool, fused: bool) -> None:
    torch.manual_seed(0)
    model, inputs = Linformer(MIXES[mix], fused, spelled), torch.randn(2, TOKENS, WIDTH)
    anatomy = surgery.read(model, inputs)
    (site,) = anatomy.sites
    own = ["kv", "kv"] if fused else ["k", "v"]
    assert [p.module for p in site.projections] == ["q", *own, "out"]
    assert [p.out_features for p in site.projections] == [WIDTH] * 4
    assert {p.module or p.parameter for p in anatomy.others} == {mix}
    assert surgery.verify(model, anatomy, inputs).proved and not anatomy.unplaced


class Channels(nn.Module):
    """Attention over channels (XCiT): the scores sum over tokens, and the nearest linear is the projection."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.out = (nn.Linear(WIDTH, n * WIDTH) for n in (1, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.embed(x)).mT.chunk(3, 1)
        return self.out(((q @ k.mT).softmax(-1) @ v).mT)


def test_attention_over_channels_keeps_its_projection() -> None:
    model, inputs = Channels(), torch.randn(2, TOKENS, WIDTH)
    anatomy = surgery.read(model, inputs)
    (site,) = anatomy.sites
    assert [p.module for p in site.projections] == ["qkv", "qkv", "qkv", "out"]
    assert site.role(Role.KEY)[0].rows == ((WIDTH, 2 * WIDTH, 1),)
    assert surgery.verify(model, anatomy, inputs).proved
