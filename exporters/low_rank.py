"""All that the adapters of one weight change, as one pair of factors."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

from surgery.adapters.base import Adapter
from surgery.anatomy.types import indices
from surgery.operations.plan import Operation, Plan

Factors = tuple[Tensor, Tensor]
"""(B, A): (out, r) and (r, in), fp32 on the CPU. The weight changes by B @ A."""


def by_weight(plan: Plan) -> dict[str, list[Operation]]:
    """The operations on each weight, by the weight's name."""
    grouped: dict[str, list[Operation]] = defaultdict(list)
    for operation in plan.operations:
        grouped[operation.projection.weight_name].append(operation)
    return dict(grouped)


@torch.no_grad()
def joined(model: nn.Module, operations: list[Operation]) -> Factors:
    """The change of one weight against the original: update and correction, zero in all other rows."""
    columns, rows = [], []
    for operation in operations:
        p, adapter = operation.projection, model.get_submodule(operation.path)
        assert isinstance(adapter, Adapter)
        for b, a in filter(None, (adapter.factors(), adapter.correction())):
            padded = torch.zeros(p.weight_out_features, b.shape[1])
            padded[indices(p.rows)] = b.float().cpu()
            columns.append(padded)
            rows.append(a.float().cpu())
    return torch.cat(columns, 1), torch.cat(rows, 0)
