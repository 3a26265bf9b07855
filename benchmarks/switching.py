"""Two hundred recompositions of a bfloat16 weight: ours, and the way that reads natural."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import surgery
from surgery.adapters.srlora import SRLoRA
from surgery.operations.adapted import Adapted, adapters_of


def switched(switches: int, dtype: torch.dtype = torch.bfloat16) -> dict[str, list[float]]:
    """|base - exact| / |exact| after each switch: ours, and a weight that is updated in place.

    The naive implementation does what reads natural: at a switch it adds B A of the fused pairs to
    the weight and subtracts that of the newborn, in the dtype of the weight.
    """
    torch.manual_seed(0)
    width, rank = 416, 2
    model = nn.Sequential(nn.Linear(width, width, bias=False)).to(dtype)
    original = model.get_parameter("0.weight").detach().double()
    policy = {"select": [{"modules": ["0"]}]}
    options: dict[str, Any] = {
        "adapter": "srlora",
        "rank": rank,
        "gamma": 1.0,
        "target_rank": rank * (switches + 1),
    }
    surgery.apply(
        model, policy, example_inputs=torch.zeros(2, width, dtype=dtype), seed=0, **options
    )
    owner, ((_, adapter),) = model[0], adapters_of(model)
    assert isinstance(owner, Adapted) and isinstance(adapter, SRLoRA)
    naive = owner.base("weight").detach().clone()
    curve: dict[str, list[float]] = {"ours": [], "naive": []}
    for _ in range(switches):
        with torch.no_grad():
            for p in adapter.parameters():
                p.add_(0.05 * torch.randn_like(p))
            fused = adapter.delta(torch.float32)
            assert len(adapter.recompose()) == rank
            naive += fused.to(dtype)
            naive -= adapter.delta(torch.float32).to(dtype)
        owner.refresh_base()
        c, d = adapter.ledger.factors()
        exact = original + c.double() @ d.double()
        for name, weight in (("ours", owner.base("weight")), ("naive", naive)):
            curve[name].append(float((weight.double() - exact).norm() / exact.norm()))
    return curve
