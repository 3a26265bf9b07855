"""Random things to do to a random architecture: policies, adapters, types, training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import surgery
from surgery import adapters
from tests.trust.architectures import Architecture, Net, architectures, build, inputs, truth

TYPES = (torch.float32, torch.bfloat16, torch.float16)
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "symlora": [{"rectangular": "truncate"}, {"rectangular": "truncate", "alpha": 3.0}],
    "lora": [{}, {"init": "gaussian", "alpha": 5.0}, {"scaling": "rslora", "dropout": 0.1}],
    "polar": [{}, {"start": "singular"}],
    "srlora": [{}, {"gamma": 1.0}, {"alpha": 2.0}],
}


@dataclass(frozen=True)
class Case:
    """One model, one policy, one adapter, one dtype."""

    architecture: Architecture
    dtype: torch.dtype
    policy: dict[str, Any]

    def model(self) -> Net:
        return build(self.architecture).to(self.dtype)

    def inputs(self, seed: int = 0) -> Tensor:
        x = inputs(self.architecture, seed)
        return x.to(self.dtype) if x.is_floating_point() else x


@st.composite
def cases(draw: st.DrawFn) -> Case:
    architecture = draw(architectures())
    roles = [str(role) for role in truth(architecture)]
    select: list[dict[str, Any]] = [{"roles": draw(_some(roles))}]
    if draw(st.booleans()):
        select.append({"roles": draw(_some(roles)), "adapter": draw(_adapter())})
    train = ["norms", "head"] if architecture.running and architecture.tied else ["norms", "biases"]
    policy = {
        "select": select,
        "adapter": draw(_adapter()),
        "train": draw(st.lists(st.sampled_from(train), max_size=2, unique=True)),
    }
    return Case(architecture, draw(st.sampled_from(TYPES)), policy)


def _some(values: list[str]) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(values), min_size=1, max_size=4, unique=True)


@st.composite
def _adapter(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(adapters.names()))
    options = draw(st.sampled_from(OPTIONS.get(kind, [{}])))
    return {"kind": kind, "rank": draw(st.integers(1, 3)), **options}


def train(model: nn.Module, case: Case, steps: int = 4) -> None:
    """Some steps along the signs of the gradients, which no dtype loses; with recomposition."""
    optimizer = torch.optim.SGD(surgery.parameter_groups(model), lr=1e-2, momentum=0.5)
    recomposer = None
    if any(hasattr(module, "switches") for module in model.modules()):
        recomposer = surgery.Recomposer(model, optimizer, total_steps=steps + 1)
    model.train()
    for step in range(steps):
        optimizer.zero_grad()
        model(case.inputs(step)).float().square().sum().mul(8).backward()
        if recomposer is not None:
            recomposer.step()
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.sign_()
        optimizer.step()
    model.eval()
