"""The model of the fault tests: two fused projections, one read by its module, one by its weight."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

import surgery
from tests.trust.architectures import Architecture, Net, build, inputs

WHOLE = Architecture(
    layout="blocks", kind="linear", head=4, heads=2, groups=2, depth=1, bias=True, gated=False,
    explicit=False, causal=False, shared=False, tokens=False, tied=False, running=True, seed=0,
)  # fmt: skip
BARE = Architecture(**{**vars(WHOLE), "kind": "bare"})
POLICY = {
    "select": [{"roles": ["attention.query", "attention.value", "attention.output"]}],
    "train": ["head", "norms"],
}


@functools.cache
def plan_of(architecture: Architecture, kind: str, rank: int = 2) -> surgery.Plan:
    options = {"rectangular": "truncate"} if kind == "symlora" else {}
    model, x = build(architecture), inputs(architecture)
    return surgery.plan(model, POLICY, example_inputs=x, adapter=kind, rank=rank, **options)


def adapted(
    kind: str,
    architecture: Architecture = WHOLE,
    dtype: torch.dtype = torch.float32,
    rank: int = 2,
) -> Net:
    """An adapted model whose adapters and extras have moved."""
    model = build(architecture).to(dtype)
    surgery.apply(model, plan=plan_of(architecture, kind, rank), seed=0)
    return disturb(model)


@torch.no_grad()
def disturb(model: Net, seed: int = 1) -> Net:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter)
    model.norm.running_mean += 1
    return model


def step(model: nn.Module, x: Tensor) -> None:
    model(x).float().square().sum().backward()
