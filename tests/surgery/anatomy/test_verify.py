"""Verification proves true anatomies and refutes false ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

import surgery
from policies.roles import Role
from surgery.errors import AnatomyError

TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 99,
}


def models() -> dict[str, tuple[nn.Module, object]]:
    small = {"depth": 2, "embed_dim": 32, "num_heads": 2}
    return {
        "vit": (timm.create_model("vit_tiny_patch16_224", **small), None),
        "beit": (timm.create_model("beit_base_patch16_224", **small), None),
        "cait": (timm.create_model("cait_xxs24_224", **small), None),
        "xcit": (timm.create_model("xcit_nano_12_p16_224", **small), None),
        "levit": (timm.create_model("levit_128s"), None),
        "bert": (transformers.BertModel(transformers.BertConfig(**TEXT)), None),
        "gpt_neox": (transformers.GPTNeoXModel(transformers.GPTNeoXConfig(**TEXT)), None),
        "t5": (
            transformers.T5Model(
                transformers.T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=99)
            ),
            None,
        ),
        "albert": (
            transformers.AlbertModel(transformers.AlbertConfig(**TEXT, embedding_size=16)),
            None,
        ),
        "encoder": (nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), torch.randn(2, 5, 16)),
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(models()))
def test_every_claim_is_seen_to_hold(name: str) -> None:
    model, inputs = models()[name]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    anatomy = surgery.read(model, inputs)
    outcome = surgery.verify(model, anatomy, inputs)
    assert outcome.findings and outcome.proved, outcome.to_dict()
    assert outcome.run == sum(site.calls for site in anatomy.sites)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), f"verification changed {key}"


def swapped(anatomy: surgery.Anatomy, first: Role, second: Role) -> surgery.Anatomy:
    """The same anatomy with two roles of the first site exchanged."""
    exchange = {first: second, second: first}
    site = anatomy.sites[0]
    projections = tuple(replace(p, role=exchange.get(p.role, p.role)) for p in site.projections)
    return replace(anatomy, sites=(replace(site, projections=projections), *anatomy.sites[1:]))


@pytest.mark.parametrize(
    "roles",
    [(Role.QUERY, Role.KEY), (Role.KEY, Role.VALUE), (Role.VALUE, Role.ATTENTION_OUTPUT)],
)
def test_a_false_claim_is_refuted(roles: tuple[Role, Role]) -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=2, embed_dim=32, num_heads=2)
    wrong = swapped(surgery.read(model), *roles)
    outcome = surgery.verify(model, wrong)
    assert not outcome.proved
    assert {f.projection.role for f in outcome.refuted} == set(roles)


def test_rows_of_another_role_are_refuted() -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=32, num_heads=2)
    anatomy = surgery.read(model)
    site = anatomy.sites[0]
    query = replace(site.role(Role.QUERY)[0], rows=((0, 33, 1),))
    wrong = replace(anatomy, sites=(replace(site, projections=(query,)),))
    (finding,) = surgery.verify(model, wrong).refuted
    assert finding.moved == ("query", "key")


def test_an_attention_that_was_not_read_is_noticed() -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=2, embed_dim=32, num_heads=2)
    anatomy = surgery.read(model)
    for one in (anatomy.sites[:1], anatomy.sites[1:]):
        outcome = surgery.verify(model, replace(anatomy, sites=one))
        assert (outcome.run, outcome.read, outcome.proved) == (2, 1, False)
        assert all(finding.proved for finding in outcome.findings)


class Quiet(nn.Module):
    """An attention that the witness does not see: by an operator of aten, or with scores made hard by hand."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.way == "aten":
            return x + self.o(torch.ops.aten.scaled_dot_product_attention(q, k, v))
        return x + self.o(F.gumbel_softmax(q @ k.mT, hard=True) @ v)


@pytest.mark.parametrize("way", ["aten", "gumbel"])
def test_where_no_attention_is_seen_nothing_is_refuted_or_proved(way: str) -> None:
    model, x = Quiet(way), torch.randn(2, 5, 8)
    outcome = surgery.verify(model, surgery.read(model, x), x)
    assert (outcome.run, outcome.read, outcome.proved, outcome.refuted) == (0, 1, False, ())
    assert len(outcome.unseen) == 4


def test_a_meta_model_is_refused() -> None:
    with torch.device("meta"):
        model = transformers.BertModel(transformers.BertConfig(**TEXT))
    with pytest.raises(AnatomyError, match="meta"):
        surgery.verify(model, surgery.read(model))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        seen = x if memory is None else torch.cat([memory, x], 1)
        attended = F.scaled_dot_product_attention(self.query(x), self.key(seen), self.value(seen))
        return x + self.out(attended)


class Remembered:
    """An object that torch.export does not know."""

    def __init__(self, x: Tensor) -> None:
        self.x = x


class Tied(nn.Module):
    """A decoder whose blocks are tied to the encoder's, weight by weight; it shows an object beside its result."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(Block() for _ in range(2))
        self.decoder = nn.ModuleList(Block() for _ in range(2))
        for mine, other in zip(self.decoder.modules(), self.encoder.modules(), strict=True):
            mine._parameters.update(other._parameters)

    def forward(self, x: Tensor) -> tuple[Tensor, Remembered]:
        y = memory = x
        for block in self.encoder:
            memory = block(memory)
        for block in self.decoder:
            y = block(y, memory)
        return y, Remembered(memory)


def test_a_decoder_tied_to_its_encoder_is_proved_site_by_site() -> None:
    torch.manual_seed(0)
    model, x = Tied().eval(), torch.randn(2, 12, 8)
    weights = {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)}
    anatomy = surgery.read(model, x)
    outcome = surgery.verify(model, anatomy, x)
    assert (outcome.run, outcome.read, len(outcome.findings)) == (4, 4, 16) and outcome.proved
    assert {n: id(p) for n, p in model.named_parameters(remove_duplicate=False)} == weights
    mistaken = [replace(site, first_run=3 - site.first_run) for site in anatomy.sites]
    assert surgery.verify(model, replace(anatomy, sites=tuple(mistaken)), x).refuted


class Forgetful(nn.Module):
    """Two attentions of the same projections; what the first gives is used by nobody.

    The write in place has torch make the graph functional, which leaves out what is not used.
    """

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        x[:, :1].copy_(x[:, 1:2])
        F.scaled_dot_product_attention(*self.qkv(x.flip(1)).chunk(3, -1))
        query, key, value = self.qkv(x).chunk(3, -1)
        return self.out((query @ key.mT).softmax(-1) @ value)


def test_an_attention_that_runs_for_nothing_is_told_apart() -> None:
    torch.manual_seed(0)
    model, x = Forgetful(), torch.randn(2, 12, 8)
    anatomy = surgery.read(model, x)
    outcome = surgery.verify(model, anatomy, x)
    assert (outcome.run, outcome.idle, outcome.read) == (2, 1, 1) and outcome.proved
    assert len(outcome.findings) == 4 and outcome.to_dict()["idle"] == 1
    assert not surgery.verify(model, swapped(anatomy, Role.QUERY, Role.KEY), x).proved
