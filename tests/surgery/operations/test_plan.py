"""Laying a policy on a model: what is selected, what is refused and why, what is printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from policies.roles import Role
from surgery.anatomy.read import read
from surgery.anatomy.types import Access, Anatomy, Unplaced
from surgery.anatomy.verify import verify
from surgery.errors import AnatomyError, CaptureError, PlanError, PolicyError, StateError
from surgery.operations.plan import Plan
from surgery.operations.planner import plan

QV = ["attention.query", "attention.value"]
ALL = [*QV, "attention.key", "attention.output", "mlp.up", "mlp.down"]
MakeNet = Callable[..., nn.Module]


@pytest.fixture
def model(make_net: MakeNet) -> nn.Module:
    return make_net()


@pytest.fixture
def anatomy(anatomies: dict[bool, Anatomy]) -> Anatomy:
    return anatomies[False]


def lay(model: nn.Module, anatomy: Anatomy, *select: object, **rest: object) -> Plan:
    overrides = {key: rest.pop(key) for key in ("rank", "depth", "roles") if key in rest}
    policy = {"name": "mine", "select": list(select), "adapter": "lora", **rest}
    return plan(model, policy, anatomy=anatomy, **overrides)


def test_it_touches_nothing(model: nn.Module, photograph: Callable[..., object], x: Tensor) -> None:
    before, random = photograph(model), torch.get_rng_state()
    plan(
        model,
        {"select": [{"roles": ALL}], "adapter": "srlora", "train": ["head"]},
        example_inputs=x,
    )
    assert photograph(model) == before
    assert torch.equal(torch.get_rng_state(), random)


def test_operations_name_rows_and_slots_of_fused_projections(
    model: nn.Module, anatomy: Anatomy
) -> None:
    made = lay(model, anatomy, {"roles": QV}, rank=2)
    assert [o.name for o in made.operations] == [
        f"blocks.{layer}.attn.qkv.weight:{slot}" for layer in (0, 1) for slot in ("query", "value")
    ]
    query, value = (o.projection for o in made.operations[:2])
    assert (query.rows, value.rows) == (((0, 16, 1),), ((32, 48, 1),))
    assert made.operations[0].path == "blocks.0.attn.qkv.adapters.weight.query"
    assert made.adapter_parameters == made.trainable == 4 * 2 * (16 + 16)
    assert made.base_parameters == sum(p.numel() for p in model.parameters())


def test_a_weight_read_by_name_of_the_parameter_is_composed(
    make_net: MakeNet, anatomies: dict[bool, Anatomy]
) -> None:
    made = lay(make_net(by_weight=True), anatomies[True], {"roles": [*QV, "mlp.up"]})
    access = {o.slot: o.access for o in made.operations}
    assert access == {"query": Access.PARAMETER, "value": Access.PARAMETER, "up": Access.MODULE}


@pytest.mark.parametrize(
    ("depth", "layers"), [("all", [0, 1]), ("last 1", [1]), ("first 50%", [0]), ("0-1", [0, 1])]
)
def test_depth(model: nn.Module, anatomy: Anatomy, depth: str, layers: list[int]) -> None:
    made = lay(model, anatomy, {"roles": ["mlp.up"], "depth": depth})
    assert [o.projection.layer for o in made.operations] == layers


def test_globs_narrow_roles_and_select_alone(model: nn.Module, anatomy: Anatomy) -> None:
    narrow = lay(model, anatomy, {"roles": ["mlp.up"], "modules": ["blocks.1.*"]})
    assert [o.projection.module for o in narrow.operations] == ["blocks.1.up"]
    alone = lay(model, anatomy, {"modules": ["*.proj", "head"]}, rank=2)
    assert [o.projection.role for o in alone.operations] == ["attention.output"] * 2 + ["head"]


def test_later_selections_win_over_earlier_ones(model: nn.Module, anatomy: Anatomy) -> None:
    made = lay(
        model,
        anatomy,
        {"roles": ["mlp.up", "mlp.down"]},
        {"roles": ["mlp.up"], "depth": "last 1", "adapter": {"kind": "frozen-a", "rank": 3}},
    )
    found = {o.projection.module: (o.adapter.kind, o.adapter.rank) for o in made.operations}
    assert found == {
        "blocks.0.up": ("lora", 8),
        "blocks.0.down": ("lora", 8),
        "blocks.1.up": ("frozen-a", 3),
        "blocks.1.down": ("lora", 8),
    }


def test_a_model_without_attention_under_an_attention_policy() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))
    with pytest.raises(
        AnatomyError, match=r"(?s)vit-attn-qv.*attention\.query.*model has"
    ) as error:
        plan(model, "vit-attn-qv", example_inputs=torch.zeros(2, 4))
    assert error.value.remedy is not None


def test_half_a_match_is_refused(model: nn.Module, anatomy: Anatomy) -> None:
    with pytest.raises(AnatomyError, match=r"(?s)asks for mlp\.gate.*mlp\.up \(2\)"):
        lay(model, anatomy, {"roles": ["mlp.gate"]})
    without_output = _drop(anatomy, Role.ATTENTION_OUTPUT, layers=(0, 1))
    with pytest.raises(AnatomyError, match=r"asks for attention\.output"):
        lay(model, without_output, {"roles": ["attention.query", "attention.output"]})
    one_layer_without = _drop(anatomy, Role.ATTENTION_OUTPUT, layers=(1,))
    with pytest.raises(AnatomyError, match=r"attention\.output.*attention\.1 has none"):
        lay(model, one_layer_without, {"roles": ["attention.query", "attention.output"]})


def test_a_missing_gate_and_attention_outside_the_layers_are_notes(
    model: nn.Module, anatomy: Anatomy
) -> None:
    pooling = replace(anatomy.sites[0], id="attention.9", layer=None, module="pool", projections=())
    wider = replace(anatomy, sites=(*anatomy.sites, pooling))
    made = lay(model, wider, {"roles": ["attention.query", "mlp.up", "mlp.gate"]})
    assert any("no gated feed-forward" in note for note in made.notes)
    assert any("attention.9" in note for note in made.notes)


def test_what_could_not_be_placed_is_said(model: nn.Module, anatomy: Anatomy) -> None:
    partial = replace(anatomy, unplaced=(Unplaced("softmax", "blocks.7", "a reason"),))
    made = lay(model, partial, {"roles": ["mlp.up"]})
    assert "not placed: softmax at blocks.7: a reason" in made.notes


def _drop(anatomy: Anatomy, role: Role, layers: tuple[int, ...]) -> Anatomy:
    sites = tuple(
        replace(site, projections=tuple(p for p in site.projections if p.role is not role))
        if site.layer in layers
        else site
        for site in anatomy.sites
    )
    return replace(anatomy, sites=sites)


def test_a_rank_above_the_projection(model: nn.Module, anatomy: Anatomy) -> None:
    with pytest.raises(PlanError, match=r"blocks\.0\.attn\.qkv\.weight(?s:.*)rank 17 is above 16"):
        lay(model, anatomy, {"roles": QV}, rank=17)


def test_what_an_adapter_refuses_is_named(model: nn.Module, anatomy: Anatomy) -> None:
    with pytest.raises(PlanError, match=r"(?s)square.*blocks\.0\.up\.weight:up"):
        lay(model, anatomy, {"roles": ["mlp.up"]}, adapter="symlora")


def test_unknown_adapters_and_options_name_the_near_word(
    model: nn.Module, anatomy: Anatomy
) -> None:
    with pytest.raises(PolicyError, match="did you mean 'lora'"):
        lay(model, anatomy, {"roles": QV}, adapter="lorra")
    with pytest.raises(PolicyError, match="did you mean 'dropout'"):
        lay(model, anatomy, {"roles": QV}, adapter={"kind": "lora", "droput": 0.1})


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(10, 8), nn.Linear(8, 10, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embed(ids))


def test_tied_weights_are_refused_with_their_other_name() -> None:
    with pytest.raises(PlanError, match=r"embed\.weight"):
        plan(Tied(), {"select": [{"roles": ["head"]}]}, example_inputs=torch.zeros(2, 3).long())


def test_training_a_tied_tensor_is_said_aloud() -> None:
    made = plan(Tied(), {"train": ["embeddings"]}, example_inputs=torch.zeros(2, 3).long())
    assert made.train == {"embeddings": ("embed.weight",)}
    assert "embed.weight trains, and is also head.weight" in made.notes


class DeadEnd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.unused(x)
        return self.used(x)


def test_projections_that_do_not_reach_an_output_are_refused() -> None:
    with pytest.raises(PlanError, match=r"(?s)unused\.weight.*no path leads"):
        plan(DeadEnd(), {"select": [{"modules": ["unused"]}]}, example_inputs=torch.zeros(2, 4))


def test_quantised_weights_are_refused(model: nn.Module, anatomy: Anatomy) -> None:
    model.blocks[0].up.weight = nn.Parameter(
        torch.zeros(32, 16, dtype=torch.int8), requires_grad=False
    )
    with pytest.raises(PlanError, match="int8"):
        lay(model, anatomy, {"roles": ["mlp.up"]})


def test_parametrised_weights_are_refused(model: nn.Module, anatomy: Anatomy) -> None:
    torch.nn.utils.parametrizations.weight_norm(model.blocks[0].up)
    with pytest.raises(PlanError, match="parametri"):
        lay(model, anatomy, {"roles": ["mlp.up"]})


def test_an_anatomy_of_another_model_is_refused(anatomy: Anatomy) -> None:
    with pytest.raises(PlanError, match=r"no parameter blocks\.0\.attn\.qkv\.weight"):
        lay(nn.Sequential(nn.Linear(2, 2)), anatomy, {"roles": QV})


def test_a_weight_cannot_train_and_carry_an_adapter(model: nn.Module, anatomy: Anatomy) -> None:
    with pytest.raises(PlanError, match=r"head\.weight would train and carry an adapter"):
        lay(model, anatomy, {"roles": ["head"]}, train=["head"], rank=2)


@pytest.mark.parametrize("wrapper", [nn.DataParallel])
def test_wrapped_models_are_refused(model: nn.Module, wrapper: type[nn.Module]) -> None:
    with pytest.raises(StateError, match="DataParallel"):
        plan(wrapper(model), "vit-attn-qv")


def test_peft_layers_are_refused(model: nn.Module, x: Tensor) -> None:
    peft = pytest.importorskip("peft")
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["up"]), model)
    with pytest.raises(StateError, match="PEFT"):
        plan(model, {"select": [{"roles": QV}]}, example_inputs=x)


def test_the_meta_device_is_enough(make_net: MakeNet) -> None:
    with torch.device("meta"):
        model = make_net()
    made = plan(
        model, {"select": [{"roles": QV}]}, example_inputs=torch.zeros(2, 6, 16, device="meta")
    )
    assert len(made.operations) == 4


def test_a_forward_that_is_not_the_plain_product_is_composed(
    model: nn.Module, anatomy: Anatomy
) -> None:
    class Clamped(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x.clamp(-0.1, 0.1), self.weight, self.bias)

    model.blocks[0].up.__class__ = Clamped
    patched = model.blocks[1].up
    patched.forward = lambda x: F.linear(x.clamp(-0.1, 0.1), patched.weight, patched.bias)
    made = lay(model, anatomy, {"roles": ["mlp.up"]})
    assert [o.access for o in made.operations] == [Access.PARAMETER] * 2


def test_coarse_weights_that_are_composed_are_noted(
    make_net: MakeNet, anatomies: dict[bool, Anatomy]
) -> None:
    model = make_net(by_weight=True).bfloat16()
    made = lay(model, anatomies[True], {"roles": QV}, adapter={"kind": "lora", "dropout": 0.1})
    assert any("bfloat16" in note for note in made.notes)
    assert any("dropout" in note for note in made.notes)


def test_roles_with_the_same_rows_share_an_adapter(model: nn.Module, anatomy: Anatomy) -> None:
    site = anatomy.sites[0]
    key = site.role(Role.KEY)[0]
    shared = replace(site, projections=(key, replace(key, role=Role.VALUE)))
    made = lay(
        model, replace(anatomy, sites=(shared,)), {"roles": ["attention.key", "attention.value"]}
    )
    assert [o.slot for o in made.operations] == ["key"]
    assert any("one adapter" in note for note in made.notes)


class Shared(nn.Module):
    """One module under three names: the query of two attentions and the key of one (shared QK)."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out, self.last = (nn.Linear(8, 8) for _ in range(5))
        self.both = self.again = self.q

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.out(F.scaled_dot_product_attention(self.q(x), self.both(x), self.v(x)))
        return x + self.last(F.scaled_dot_product_attention(self.again(x), self.k(x), self.v(x)))


def test_a_module_under_several_names_goes_by_the_first_and_gets_one_adapter() -> None:
    model, x = Shared(), torch.randn(2, 5, 8)
    anatomy = read(model, x)
    names = [[p.weight_name for p in site.projections] for site in anatomy.sites]
    assert names == [
        ["q.weight", "q.weight", "v.weight", "out.weight"],
        ["q.weight", "k.weight", "v.weight", "last.weight"],
    ]
    assert verify(model, anatomy, x).proved
    roles = ["attention.query", "attention.key"]
    made = plan(model, {"select": [{"roles": roles}]}, anatomy=anatomy)
    assert [o.name for o in made.operations] == ["q.weight:query", "k.weight:key"]
    assert any("q.weight is both attention.query and attention.key" in n for n in made.notes)


def test_roles_that_share_some_rows_are_refused(model: nn.Module, anatomy: Anatomy) -> None:
    site = anatomy.sites[0]
    key = site.role(Role.KEY)[0]
    overlapping = replace(key, role=Role.VALUE, rows=((20, 36, 1),))
    broken = replace(anatomy, sites=(replace(site, projections=(key, overlapping)),))
    with pytest.raises(PlanError, match="share 12 of its output channels"):
        lay(model, broken, {"roles": ["attention.key", "attention.value"]})


class Opaque(nn.Module):
    """A forward that leaves torch: no graph can be captured."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.from_numpy(self.first(x).detach().numpy()))


def test_globs_need_no_graph_and_roles_do() -> None:
    x = torch.ones(2, 4)
    made = plan(
        Opaque(), {"select": [{"modules": ["first"]}], "adapter": "lora"}, rank=2, example_inputs=x
    )
    assert [(o.name, o.access) for o in made.operations] == [
        ("first.weight:other", Access.PARAMETER)
    ]
    assert any("graph could not be captured" in note for note in made.notes)
    with pytest.raises(CaptureError):
        plan(Opaque(), {"select": [{"roles": QV}]}, example_inputs=x)


def test_training_nothing_at_all_is_refused() -> None:
    headless = nn.Sequential(nn.Linear(4, 4, bias=False))
    with pytest.raises(PlanError, match="Sequential would train") as caught:
        plan(headless, "bitfit", train=["biases"], example_inputs=torch.ones(1, 4))
    assert "biases: this model has none" in str(caught.value)
    assert "train=" in str(caught.value)


def test_a_plan_is_plain_data_and_back(model: nn.Module, anatomy: Anatomy) -> None:
    adapter = {"kind": "symlora", "rank": 2, "scaling": "rslora"}
    made = lay(model, anatomy, {"roles": QV, "adapter": adapter}, train=["head", "norms"])
    plain = json.loads(json.dumps(made.to_dict()))
    assert Plan.from_dict(plain) == made
    assert {"model", "policy", "operations", "train", "trainable", "share", "notes"} <= plain.keys()
    assert plain["operations"][0]["projection"]["rows"] == [[0, 16, 1]]


def test_it_prints_what_a_person_needs(model: nn.Module, anatomy: Anatomy) -> None:
    text = str(lay(model, anatomy, {"roles": QV}, train=["head"], rank=2))
    for needed in (
        "mine on Net",
        "blocks.*.attn.qkv.weight",
        "0:16",
        "32:48",
        "lora, rank 2",
        "0-1",
        "head.weight",
    ):
        assert needed in text
    trainable = 4 * 2 * 32 + 5 * 16 + 5
    assert f"{trainable:,} of" in text
