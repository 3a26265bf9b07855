"""What the speed benchmarks count."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("peft")

from benchmarks.speed_cases import Case, kept_bytes


class Exponential(nn.Module):
    """Its output is what its node keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[weakref.ref[Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        y = x.exp()
        self.seen.append(weakref.ref(y))
        return y


def test_kept_bytes_counts_each_storage_once_and_frees_it() -> None:
    model = Exponential()
    x = torch.ones(5, 3, requires_grad=True)
    assert kept_bytes(Case(model), {"x": x}) == 5 * 3 * 4  # exp's output, which square keeps too
    assert model.seen[0]() is None
