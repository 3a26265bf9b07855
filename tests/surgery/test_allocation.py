"""Ranks go where the loss says, within the budget, and measuring leaves no trace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import policies
import surgery
from surgery import Anatomy, PlanError, StateError
from surgery.adapters import registry
from surgery.allocation import Candidate, share_out
from surgery.operations.sensitivity import default_loss, gradients

WIDTH, HEADS, LAYERS = 16, 2, 3
ROLES = ["attention.query", "attention.value", "mlp.up"]
LORA = {"select": [{"roles": ROLES}], "adapter": "lora"}
BATCHES = [
    (torch.randn(4, 5, WIDTH, generator=g), torch.randint(3, (4,), generator=g))
    for g in (torch.Generator().manual_seed(seed) for seed in range(2))
]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.drop(self.proj(seen))
        return x + self.down(F.gelu(self.up(x)))


class Net(nn.Module):
    """Three blocks, of which only those in ``matters`` can move the output."""

    def __init__(self, matters: tuple[int, ...] = (0, 1, 2)) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.BatchNorm1d(WIDTH)
        self.head = nn.Linear(WIDTH, 3)
        for layer in set(range(LAYERS)) - set(matters):
            nn.init.zeros_(self.blocks[layer].proj.weight)
            nn.init.zeros_(self.blocks[layer].down.weight)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x.mean(1)))


@pytest.fixture(scope="module")
def anatomy() -> Anatomy:
    return surgery.read(Net(), torch.zeros(2, 5, WIDTH))


@pytest.fixture
def make(anatomy: Anatomy) -> Callable[..., tuple[nn.Module, dict[str, Any]]]:
    def build(*matters: int) -> tuple[nn.Module, dict[str, Any]]:
        torch.manual_seed(0)
        return Net(matters or (0, 1, 2)), {"anatomy": anatomy}

    return build


Make = Callable[..., tuple[nn.Module, dict[str, Any]]]


@pytest.mark.parametrize("layer", range(LAYERS))
def test_rank_goes_to_the_only_layer_that_matters(make: Make, layer: int) -> None:
    model, known = make(layer)
    policy = surgery.allocate(model, BATCHES, LORA, budget=600, **known)
    plan = surgery.plan(model, policy, **known)
    assert {o.projection.layer for o in plan.operations} == {layer}
    assert 0 < plan.adapter_parameters <= 600


def test_a_weaker_layer_gets_less(make: Make) -> None:
    model, known = make()
    with torch.no_grad():
        for linear in (model.blocks[1].proj, model.blocks[1].down):
            linear.weight.mul_(0.02)
    policy = surgery.allocate(model, BATCHES, LORA, budget=1500, **known)
    ranks: Counter[int] = Counter()
    for o in surgery.plan(model, policy, **known).operations:
        ranks[o.projection.layer] += o.adapter.rank
    assert ranks[1] < min(ranks[0], ranks[2])


@pytest.mark.parametrize("kind", ["lora", "symlora", "srlora", "frozen-a", "polar"])
def test_the_budget_is_spent_and_never_exceeded(make: Make, kind: str) -> None:
    model, known = make()
    options = {"rectangular": "truncate"} if kind == "symlora" else {}
    asked = {"select": [{"roles": ROLES}], "adapter": {"kind": kind, "rank": 2, **options}}
    uniform = surgery.plan(model, asked, **known).adapter_parameters
    policy = surgery.allocate(model, BATCHES, asked, **known)
    spent = surgery.plan(model, policy, **known).adapter_parameters
    assert uniform - 3 * WIDTH - 3 <= spent <= uniform, "what the policy's own ranks would spend"
    assert f"{spent:,} of {uniform:,} weights" in policy.description
    by_share = surgery.allocate(model, BATCHES, asked, budget="5%", **known)
    plan = surgery.plan(model, by_share, **known)
    assert plan.adapter_parameters <= plan.base_parameters * 0.05


def test_the_model_is_left_as_it_was_and_runs_repeat(make: Make) -> None:
    model, known = make()
    model.train()
    model.head.bias.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    state = {key: t.clone() for key, t in model.state_dict().items()}
    flags = [p.requires_grad for p in model.parameters()]
    random = torch.get_rng_state()
    one = surgery.allocate(model, BATCHES, LORA, budget=900, **known)
    two = surgery.allocate(model, BATCHES, LORA, budget=900, **known)
    assert one == two and torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(t, state[key]) for key, t in model.state_dict().items())
    assert flags == [p.requires_grad for p in model.parameters()] and model.training
    with_gradient = [name for name, p in model.named_parameters() if p.grad is not None]
    assert with_gradient == ["head.weight"] and bool((model.head.weight.grad == 1).all())


def test_a_loss_that_fails_leaves_the_model_as_it_was(make: Make) -> None:
    model, known = make()

    def broken(model: nn.Module, batch: object) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        surgery.allocate(model, BATCHES, LORA, loss=broken, **known)
    assert model.training and all(p.requires_grad for p in model.parameters())


def test_what_is_printed_is_the_policy(make: Make, anatomy: Anatomy) -> None:
    model, known = make()
    policy = surgery.allocate(model, BATCHES, LORA, budget=900, train=["head"], **known)
    again = policies.get(yaml.safe_load(str(policy)))
    assert again == policy and policy.budget is None and policy.train == ("head",)
    assert surgery.plan(model, again, **known).operations


def test_gradients_are_those_of_a_backward(make: Make, anatomy: Anatomy) -> None:
    model, _ = make()
    projections = [p for p in anatomy.projections if p.role == "attention.value"]
    found = gradients(model, projections, BATCHES, default_loss)
    model.eval()
    sum(default_loss(model, batch) / len(BATCHES) for batch in BATCHES).backward()
    for p, gradient in zip(projections, found, strict=True):
        whole = model.get_submodule(p.module).weight.grad
        torch.testing.assert_close(gradient, whole[2 * WIDTH :])


def test_a_pair_is_worth_what_the_best_update_of_its_rank_gains() -> None:
    g = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    gains = registry.get("lora").first_order_gains(g, torch.zeros_like(g), 6)
    u, _, vh = torch.linalg.svd(g)
    for rank in range(1, 7):
        best = u[:, :rank] @ vh[:rank]
        torch.testing.assert_close((g * best).sum(), gains[:rank].sum())
    symmetric = registry.get("symlora").first_order_gains(g, torch.zeros_like(g), 6)
    values, vectors = torch.linalg.eigh((g + g.T) / 2)
    first = values.abs().argmax()
    update = vectors[:, first].outer(vectors[:, first]) * values[first].sign()
    torch.testing.assert_close((g * update).sum(), symmetric[0])
    skew = registry.get("symlora").first_order_gains(g - g.T, torch.zeros_like(g), 6)
    torch.testing.assert_close(skew, torch.zeros(6), atol=1e-5, rtol=0)


@given(
    st.lists(st.tuples(st.lists(st.floats(0.01, 10), max_size=5), st.integers(1, 9)), min_size=1),
    st.integers(0, 60),
)
def test_no_pair_that_was_left_out_fits_and_is_worth_more_than_one_taken(
    drawn: list[tuple[list[float], int]], limit: int
) -> None:
    candidates = [Candidate(None, tuple(sorted(g, reverse=True)), cost) for g, cost in drawn]  # type: ignore[arg-type]
    ranks = share_out(candidates, limit)
    rest = limit - sum(rank * c.cost for rank, c in zip(ranks, candidates, strict=True))
    assert rest >= 0
    for rank, c in zip(ranks, candidates, strict=True):
        assert rank == len(c.gains) or c.cost > rest, "what fits is taken"
    taken = [c.gains[r - 1] / c.cost for r, c in zip(ranks, candidates, strict=True) if r]
    equal = len({c.cost for c in candidates}) == 1
    left = [c.gains[r] / c.cost for r, c in zip(ranks, candidates, strict=True) if r < len(c.gains)]
    assert not equal or not taken or not left or max(left) <= min(taken)


def test_what_cannot_be_measured_is_said(make: Make) -> None:
    model, known = make()
    with pytest.raises(StateError, match="no batch"):
        surgery.allocate(model, [], LORA, **known)
    with pytest.raises(StateError, match=r"pass a mapping.*loss="):
        surgery.allocate(model, [torch.ones(2, 5, WIDTH)], LORA, **known)
    with pytest.raises(StateError, match=r"labels(.|\n)*pass a mapping"):
        surgery.allocate(model, [{"x": BATCHES[0][0], "labels": BATCHES[0][1]}], LORA, **known)
    with pytest.raises(StateError, match="no finite number"):
        surgery.allocate(model, BATCHES, LORA, loss=lambda m, b: m(b[0]).sum() / 0, **known)
    with pytest.raises(PlanError, match="one pair trains"):
        surgery.allocate(model, BATCHES, LORA, budget=3, **known)
    dead, known = make(7)
    with pytest.raises(PlanError, match="no gradient"):
        surgery.allocate(dead, BATCHES, LORA, **known)


def test_max_rank_spreads_it(make: Make) -> None:
    model, known = make(1)
    policy = surgery.allocate(model, BATCHES, LORA, budget="1M", max_rank=2, **known)
    plan = surgery.plan(model, policy, **known)
    assert {o.adapter.rank for o in plan.operations} == {2} and len(plan.operations) == 3


class Twice(nn.Module):
    """Two attentions in one layer: role and layer do not tell which is meant."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict({"a[0]": Block(), "b": Block()}) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer["b"](layer["a[0]"](x))
        return x.mean(1)[:, :3]


def test_modules_tell_where_role_and_layer_do_not() -> None:
    torch.manual_seed(0)
    model = Twice()
    nn.init.zeros_(model.layers[0]["b"].proj.weight)
    nn.init.zeros_(model.layers[0]["b"].down.weight)
    example = {"example_inputs": torch.zeros(2, 5, WIDTH)}
    policy = surgery.allocate(model, BATCHES, LORA, budget="1M", max_rank=2, **example)
    modules = {o.projection.module for o in surgery.plan(model, policy, **example).operations}
    names = ("qkv", "up")
    held = [(0, "a[0]"), (1, "a[0]"), (1, "b")]
    assert modules == {f"layers.{layer}.{block}.{n}" for layer, block in held for n in names}


def test_the_polar_form_gains_along_its_isometry() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((8, 5), (5, 8), (6, 6)):
        weight, g = (torch.randn(shape, generator=generator) for _ in range(2))
        kind = registry.get("polar")
        gains = kind.first_order_gains(g, weight, 3)
        adapter = kind(shape[1], shape[0], rank=1)
        adapter.start(weight)
        r, tall = adapter.R, shape[0] >= shape[1]
        square = r.T @ g if tall else g @ r.T
        values, vectors = torch.linalg.eigh((square + square.T) / 2)
        first = values.abs().argmax()
        pair = vectors[:, first].outer(vectors[:, first]) * values[first].sign()
        update = r @ pair if tall else pair @ r
        torch.testing.assert_close((g * update).sum(), gains[0])


@pytest.mark.parametrize("most", [0, -1])
def test_a_largest_rank_below_one_is_refused(most: int) -> None:
    with pytest.raises(PlanError, match=f"max_rank {most}"):
        surgery.allocate(nn.Linear(2, 2), [], "vit-attn-qv", max_rank=most)
