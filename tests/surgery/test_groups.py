"""Optimizer groups."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from surgery.adapters import get
from surgery.errors import StateError
from surgery.training import parameter_groups


def carrier(kind, **options):
    adapter = get(kind)(8, 8, rank=2, **options)
    adapter.start(torch.eye(8), torch.Generator().manual_seed(0))
    return adapter


def network():
    """Adapters of both sorts, a norm, a layer, a frozen layer, and one parameter in two places."""
    model = nn.Module()
    model.lora, model.sym, model.srlora = carrier("lora"), carrier("symlora"), carrier("srlora")
    model.polar = carrier("polar", start="singular")
    model.norm, model.map_norm = nn.LayerNorm(8), nn.LayerNorm((8, 8))
    model.head, model.frozen = nn.Linear(8, 4), nn.Linear(8, 8).requires_grad_(False)
    model.tied = nn.Linear(8, 4)
    model.tied.weight = model.head.weight
    return model


def by_name(groups):
    return {group["name"]: group for group in groups}


def test_every_trainable_parameter_is_in_exactly_one_group():
    model = network()
    listed = [p for group in parameter_groups(model) for p in group["params"]]
    assert len(listed) == len({id(p) for p in listed})
    assert {id(p) for p in listed} == {id(p) for p in model.parameters() if p.requires_grad}


def test_what_decays_and_what_does_not():
    model = network()
    groups = by_name(parameter_groups(model, lr=1e-3, weight_decay=0.1))
    members = {name: {id(p) for p in group["params"]} for name, group in groups.items()}
    decay = {name: group["weight_decay"] for name, group in groups.items()}
    assert decay == {"adapters": 0.1, "adapters.base": 0.0, "weights": 0.1, "biases and norms": 0.0}
    assert members["adapters"] == {id(p) for m in (model.lora, model.sym) for p in m.parameters()}
    assert members["adapters.base"] == {
        id(p) for m in (model.srlora, model.polar) for p in m.parameters()
    }
    assert members["weights"] == {id(model.head.weight)}
    assert all(group["lr"] == 1e-3 for group in groups.values())


def test_an_optimizer_takes_them_and_pretrained_weight_does_not_decay():
    model = network()
    optimizer = torch.optim.AdamW(parameter_groups(model, lr=0.1, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"lora.A", "sym.Q", "head.weight"}


def test_empty_groups_and_an_unsaid_rate_are_left_out():
    (group,) = parameter_groups(carrier("pissa"), weight_decay=0.1)
    assert group.keys() == {"name", "params", "weight_decay"}


def test_nothing_to_train_is_refused():
    with pytest.raises(StateError, match="no trainable parameters"):
        parameter_groups(nn.Linear(2, 2).requires_grad_(False))
