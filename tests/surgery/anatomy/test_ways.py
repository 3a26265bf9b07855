"""Every way of writing a projection or an attention, hand-written, read exactly and verified."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import flex_attention
from torch.utils.checkpoint import checkpoint

import surgery
from policies.roles import Role
from surgery.anatomy.types import Rows

WIDTH = 16


class Attention(nn.Module):
    """A fused qkv and an output projection; subclasses write what lies between in their own way."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.attend(*self.qkv(x).chunk(3, -1)))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)


class Baddbmm(Attention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = torch.baddbmm(q.new_zeros(1, 1, 1), q, k.transpose(1, 2), beta=1.0, alpha=0.25)
        return torch.bmm(scores.softmax(-1), v)


class Factorised(Attention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return q @ (k.softmax(1).transpose(1, 2) @ v)


class Linear(Attention):
    """Channels first: the context is the left factor."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = q.relu().mT, k.relu().mT, v.mT
        return ((v @ k.mT) @ q).mT


class Autocast(Attention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return (q.float() @ k.float().mT).softmax(-1) @ v.float()


class RelativePosition(Attention):
    """A product of the query with a table inside the scores is no other layer that it feeds."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(WIDTH, 24))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.mT + q @ self.table).softmax(-1) @ v


class Activated(Attention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v.sigmoid())


class Slots(Attention):
    """Slots compete for each token: the softmax runs over the queries, and the weights are made hard."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        soft = (q @ k.mT).softmax(-2)
        hard = torch.zeros_like(soft).scatter_(-2, soft.max(-2, keepdim=True)[1], 1.0)
        weights = hard - soft.detach() + soft
        return weights / (weights.sum(-1, keepdim=True) + 1) @ v


class Shown(Attention):
    """The scores go through a second softmax, for the user to look at."""

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = q @ k.mT
        return self.out(scores.softmax(-1) @ v), scores.softmax(-2)


class Flex(Attention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.unsqueeze(1) for t in (q, k, v))
        return flex_attention(q, k, v, score_mod=lambda s, b, h, i, j: s + (i - j)).squeeze(1)


class Windows(Attention):
    """Overlapping windows of tokens, as Longformer makes them."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        windows = [self.windows(t) for t in (q, k, v)]
        return F.scaled_dot_product_attention(*windows).flatten(1, 2)

    def windows(self, tokens: Tensor) -> Tensor:
        tokens = tokens.contiguous()
        batch, token, channel = tokens.stride()
        strides = (batch, 4 * token, token, channel)
        return tokens.as_strided((tokens.shape[0], 5, 8, WIDTH), strides)


class Checkpointed(Attention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return checkpoint(F.scaled_dot_product_attention, q, k, v, use_reentrant=False)


class PointwiseTwice(Attention):
    def __init__(self) -> None:
        super().__init__()
        self.qkv: Any = nn.Conv1d(WIDTH, 3 * WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.mT).chunk(3, 1)
        return self.out(self.attend(q.mT, k.mT, v.mT))


class Rotated(Attention):
    """Rotations as a table of matrices, and a result turned back by one: nobody learns these."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("turns", torch.linalg.qr(torch.randn(24, WIDTH, WIDTH))[0])

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = ((t.unsqueeze(-2) @ self.turns).squeeze(-2) for t in (q, k))
        return ((q @ k.mT).softmax(-1) @ v) @ self.turns[0].mT


def thirds() -> dict[Role, Rows]:
    roles = (Role.QUERY, Role.KEY, Role.VALUE)
    return {role: ((i * WIDTH, (i + 1) * WIDTH, 1),) for i, role in enumerate(roles)}


@pytest.mark.parametrize(
    "kind",
    [
        Attention, Baddbmm, Factorised, Linear, Autocast, RelativePosition, Activated, PointwiseTwice,
        Slots, Shown, Flex, Windows, Checkpointed, Rotated,
    ],
)  # fmt: skip
def test_each_way_is_read_exactly_and_proved(kind: type[Attention]) -> None:
    torch.manual_seed(0)
    model, inputs = kind(), torch.randn(2, 24, WIDTH)
    anatomy = surgery.read(model, inputs)
    (site,) = anatomy.sites
    assert {p.role: p.rows for p in site.projections if p.module == "qkv"} == thirds()
    assert [p.weight_name for p in site.role(Role.ATTENTION_OUTPUT)] == ["out.weight"]
    assert not anatomy.unplaced
    assert surgery.verify(model, anatomy, inputs).proved


class Packed(nn.Module):
    """One weight for the feed-forward and the attention beside it, as ViT-22B has."""

    def __init__(self) -> None:
        super().__init__()
        self.packed = nn.Linear(WIDTH, 5 * WIDTH)
        self.out, self.down = nn.Linear(WIDTH, WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        hidden, q, k, v = self.packed(x).split([2 * WIDTH, WIDTH, WIDTH, WIDTH], -1)
        attended = self.out(F.scaled_dot_product_attention(q, k, v))
        return x + attended + self.down(F.gelu(hidden))


def test_a_feed_forward_packed_beside_attention() -> None:
    model, inputs = Packed(), torch.randn(2, 24, WIDTH)
    anatomy = surgery.read(model, inputs)
    rows = {p.role.short: p.rows for p in anatomy.projections if p.module == "packed"}
    assert rows == {
        "up": ((0, 32, 1),), "query": ((32, 48, 1),), "key": ((48, 64, 1),), "value": ((64, 80, 1),),
    }  # fmt: skip
    assert [p.module for p in anatomy.feed_forward[0].projections] == ["packed", "down"]
    assert surgery.verify(model, anatomy, inputs).proved and not anatomy.unplaced


class Difference(Attention):
    """Two attentions of one projection, the second subtracted (DIFF Transformer, fused)."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        (q, other_q), (k, other_k) = q.chunk(2, -1), k.chunk(2, -1)
        less = F.scaled_dot_product_attention(other_q, other_k, v)
        return self.out(F.scaled_dot_product_attention(q, k, v) - 0.2 * less)


def test_an_attention_subtracted_from_another() -> None:
    model, inputs = Difference(), torch.randn(2, 24, WIDTH)
    anatomy = surgery.read(model, inputs)
    assert len(anatomy.sites) == 2 and not anatomy.unplaced
    assert all(len(site.role(Role.ATTENTION_OUTPUT)) == 1 for site in anatomy.sites)
    assert [s.role(Role.QUERY)[0].rows for s in anatomy.sites] == [((8, 16, 1),), ((0, 8, 1),)]
    assert surgery.verify(model, anatomy, inputs).proved


class Einsum(nn.Module):
    """Weights of three dimensions: heads and their channels apart, as XLNet and Flax have them."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (
            nn.Parameter(torch.randn(WIDTH, 2, WIDTH // 2) / 4) for _ in range(4)
        )
        self.up = nn.Parameter(torch.randn(2 * WIDTH, WIDTH) / 4)

    def forward(self, x: Tensor) -> Tensor:
        q = torch.einsum("bsh,hnd->bnsd", x, self.q)
        k = torch.einsum("bsh,hnd->bnsd", x, self.k)
        v = torch.einsum("hnd,bsh->bsnd", self.v, x)
        weights = torch.einsum("bnid,bnjd->bnij", q, k).softmax(-1)
        attended = torch.einsum("bnij,bjnd->bind", weights, v)
        return torch.einsum("oh,bsh->bso", self.up, torch.einsum("bsnd,hnd->bsh", attended, self.o))


def test_einsum_with_weights_of_three_dimensions() -> None:
    torch.manual_seed(0)
    model, inputs = Einsum(), torch.randn(2, 24, WIDTH)
    anatomy = surgery.read(model, inputs)
    (site,) = anatomy.sites
    claimed = {p.role.short: (p.weight_name, str(p.layout)) for p in site.projections}
    assert claimed == {
        "query": ("q", "in_out"), "key": ("k", "in_out"), "value": ("v", "in_out"), "output": ("o", "out_in"),
    }  # fmt: skip
    assert all(p.whole and p.in_features == p.out_features == WIDTH for p in site.projections)
    assert [(p.weight_name, p.out_features) for p in anatomy.others] == [("up", 2 * WIDTH)]
    assert surgery.verify(model, anatomy, inputs).proved


@pytest.mark.parametrize("equation", ["bsh,nhd->bnsd", "bsh,hbd->bsd", "bsh,hnd->bs"])
def test_einsums_that_are_no_projection_are_left_alone(equation: str) -> None:
    """The weight's sides interleaved, a weight for each sample, channels summed away."""

    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(2, 2, 2))

        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum(equation, x, self.w)

    assert not surgery.read(Product(), torch.randn(2, 2, 2)).projections


class Residual(nn.Module):
    """The query is the residual stream itself: a linear that is summed with its input."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.kv, self.out = (
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(WIDTH, 2 * WIDTH),
            nn.Linear(WIDTH, WIDTH),
        )

    def forward(self, x: Tensor) -> Tensor:
        key, value = self.kv(x).chunk(2, -1)
        return self.out(F.scaled_dot_product_attention(x + self.mix(x), key, value))


def test_a_sum_with_the_input_is_no_query_projection() -> None:
    model, inputs = Residual(), torch.randn(2, 24, WIDTH)
    anatomy = surgery.read(model, inputs)
    (site,) = anatomy.sites
    assert not site.role(Role.QUERY) and "residual" in site.notes[0] and not anatomy.unplaced
    assert surgery.verify(model, anatomy, inputs).proved


def test_a_symbolic_trace_is_read_like_its_model() -> None:
    class Sliced(Attention):
        def forward(self, x: Tensor) -> Tensor:
            fused = self.qkv(x)
            return self.out(
                self.attend(*(fused[..., i : i + WIDTH] for i in (0, WIDTH, 2 * WIDTH)))
            )

    model, inputs = Sliced(), torch.randn(2, 24, WIDTH)
    traced = torch.fx.symbolic_trace(model)
    assert surgery.read(traced, inputs).sites == surgery.read(model, inputs).sites
    assert surgery.verify(traced, surgery.read(traced, inputs), inputs).proved


class Latent(nn.Module):
    """Latent attention: rows of ``down`` go to the key at once, the others through ``up``."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.down = nn.Linear(WIDTH, 12), nn.Linear(WIDTH, 12)
        self.up, self.out = nn.Linear(8, 8 + WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        latent, rotary = self.down(x).split([8, 4], -1)
        key, value = self.up(F.layer_norm(latent, (8,))).split([8, WIDTH], -1)
        key = torch.cat([key, rotary], -1)
        return self.out(F.scaled_dot_product_attention(self.query(x), key, value))


def test_latent_attention_shares_one_weight_by_rows() -> None:
    model, inputs = Latent(), torch.randn(2, 24, WIDTH)
    anatomy = surgery.read(model, inputs)
    keys = {p.module: p.rows for p in anatomy.sites[0].role(Role.KEY)}
    assert keys == {"down": ((8, 12, 1),), "up": ((0, 8, 1),)} and not anatomy.unplaced
    assert surgery.verify(model, anatomy, inputs).proved


class SharedKeyValue(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        kv = self.kv(x)
        return self.out(F.scaled_dot_product_attention(self.q(x), kv, kv))


def test_rows_that_are_key_and_value_at_once_are_proved_as_both() -> None:
    model, inputs = SharedKeyValue(), torch.randn(2, 24, WIDTH)
    anatomy = surgery.read(model, inputs)
    (site,) = anatomy.sites
    assert site.role(Role.KEY)[0].module == site.role(Role.VALUE)[0].module == "kv"
    assert surgery.verify(model, anatomy, inputs).proved


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(3, WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(x, self.weights)


def test_stacked_weights_are_told() -> None:
    (unplaced,) = surgery.read(Experts(), torch.randn(3, 5, WIDTH)).unplaced
    assert unplaced.what == "stacked weights" and "weights" in unplaced.why


class Unnamed(Attention):
    """The query by a part of a weight's input channels: no stack, and nothing that is settled."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(2 * WIDTH, WIDTH))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q @ self.weights[WIDTH:], k, v)


def test_a_plain_weight_is_no_stack() -> None:
    anatomy = surgery.read(Unnamed(), torch.randn(2, 24, WIDTH))
    (site,) = anatomy.sites
    assert not site.role(Role.QUERY) and "made by matmul" in site.notes[0]
    assert [u.why for u in anatomy.unplaced if u.what == "sdpa attention"] == [site.notes[0]]


def test_what_moves_nothing_is_unseen_and_not_refuted() -> None:
    model = Attention()
    model.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
    inputs = torch.zeros(2, 24, WIDTH)
    outcome = surgery.verify(model, surgery.read(model, inputs), inputs)
    assert len(outcome.unseen) == 3 and not outcome.refuted and not outcome.proved


class Exclusive(Attention):
    """What attention gives, less its share along the values: a summand made of the result itself."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        v = v + torch.arange(v.shape[1]).unsqueeze(-1)
        result = F.scaled_dot_product_attention(q, k, v)
        return result - (result * v).sum(-1, keepdim=True) * v / v.square().sum(-1, keepdim=True)


def test_a_summand_made_of_the_result_is_no_other_branch() -> None:
    model, inputs = Exclusive(), torch.randn(2, 24, WIDTH)
    anatomy = surgery.read(model, inputs)
    assert anatomy.sites[0].role(Role.ATTENTION_OUTPUT)[0].module == "out" and not anatomy.unplaced
    assert surgery.verify(model, anatomy, inputs).proved


class Grouped(Attention):
    """DeepSeek-V4's output: each group of channels has a matrix of its own, all of them in one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.groups = nn.Parameter(torch.randn(2 * 8, 4))

    def forward(self, x: Tensor) -> Tensor:
        y = super().attend(*self.qkv(x).chunk(3, -1))
        parts = y.unflatten(-1, (2, 8)).permute(2, 0, 1, 3).flatten(1, 2)
        return self.out(
            torch.bmm(parts, self.groups.view(2, 8, 4)).repeat(1, 1, 2).mT.reshape(-1, WIDTH)
        )


def test_a_weight_seen_as_many_matrices_is_a_stack_and_settled() -> None:
    anatomy = surgery.read(Grouped(), torch.randn(2, 6, WIDTH))
    assert not anatomy.sites[0].role(Role.ATTENTION_OUTPUT)
    assert "stacked weights" in anatomy.sites[0].notes[0]
    assert [u.what for u in anatomy.unplaced] in ([], ["stacked weights"])
