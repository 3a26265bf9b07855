"""Which products count as projections, and who is said to make them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import surgery
from surgery.anatomy.types import Access

WIDTH = 16


class Pooling(nn.Module):
    """A learned query, projected before it is expanded: no input reaches its projection."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.token, self.fused = nn.Parameter(torch.randn(1, 1, WIDTH)), fused
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(self.token).expand(x.shape[0], -1, -1), self.k(x), self.v(x)
        if self.fused:
            return self.out(F.scaled_dot_product_attention(q, k, v))
        return self.out((q @ k.mT).softmax(-1) @ v)


@pytest.mark.parametrize("fused", [True, False])
def test_a_layer_applied_to_a_parameter_is_a_projection(fused: bool) -> None:
    model, inputs = Pooling(fused), torch.randn(2, 24, WIDTH)
    anatomy = surgery.read(model, inputs)
    (site,) = anatomy.sites
    assert [p.module for p in site.projections] == ["q", "k", "v", "out"]
    assert site.projections[0].access is Access.MODULE and not anatomy.unplaced
    assert surgery.verify(model, anatomy, inputs).proved


def test_a_product_of_two_weights_is_none() -> None:
    class Merged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (nn.Parameter(torch.randn(WIDTH, WIDTH)) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.b @ self.a)

    assert not surgery.read(Merged(), torch.randn(2, 24, WIDTH)).projections
