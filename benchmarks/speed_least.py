"""The least that training low-rank factors can cost: the products of their gradients, and nothing else."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from surgery.operations.plan import Plan

Spans = list[tuple[int, int]]


class _Gradients(torch.autograd.Function):
    """``x W^T`` whose backward also makes u = x A^T, v = g B, g^T u and v^T x, as a gradient of A and B needs."""

    @staticmethod
    def forward(
        ctx: Any, spans: Spans, x: Tensor, weight: Tensor, bias: Tensor | None, *factors: Tensor
    ) -> Tensor:
        ctx.spans = spans
        ctx.save_for_backward(x, weight, *factors)
        return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *factors = ctx.saved_tensors
        x, g = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        grads: list[Tensor] = []
        for (start, length), b, a in zip(ctx.spans, factors[::2], factors[1::2], strict=True):
            part, own = g.narrow(1, start, length), b.dtype
            b, a = b.to(g.dtype), a.to(g.dtype)
            v = part @ b.T.contiguous().T
            grads += [((x @ a.T).T @ part).T.to(own), (v.T @ x).to(own)]
        return None, (g @ weight.to(g.dtype)).view(*grad.shape[:-1], -1), None, None, *grads


class Least(nn.Module):
    """A frozen linear with float32 factors that get a gradient, in products of the input's type, and have no effect."""

    def __init__(self, linear: nn.Linear, spans: Spans, rank: int) -> None:
        super().__init__()
        self.weight, self.bias, self.spans = linear.weight, linear.bias, spans
        shapes = [shape for _, n in spans for shape in ((n, rank), (rank, linear.in_features))]
        device = linear.weight.device
        self.factors = nn.ParameterList(torch.randn(shape, device=device) for shape in shapes)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        y: Tensor = _Gradients.apply(self.spans, x, self.weight, self.bias, *self.factors)
        return y


def least(model: nn.Module, plan: Plan) -> nn.Module:
    """The frozen model with :class:`Least` in the place of every linear that the plan adapts."""
    model.requires_grad_(False)
    operations = defaultdict(list)
    for operation in plan.operations:
        operations[operation.projection.module].append(operation)
    for path, group in operations.items():
        parent, _, name = path.rpartition(".")
        spans = [(o.projection.rows[0][0], o.projection.out_features) for o in group]
        linear = model.get_submodule(path)
        assert isinstance(linear, nn.Linear)
        setattr(model.get_submodule(parent), name, Least(linear, spans, group[0].adapter.rank))
    return model
