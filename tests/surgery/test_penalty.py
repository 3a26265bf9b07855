"""The penalty of a model is the sum of its SymLoRA adapters' penalties, and training by it brings Q back."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

import surgery
from surgery.adapters.symlora import SymLoRA


def network(adapter: str) -> nn.Module:
    torch.manual_seed(0)
    net = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3)
    return surgery.apply(net, "vit-attn-qv", adapter=adapter, rank=2, seed=0)


def test_it_is_the_sum_over_all_adapters_and_brings_them_back() -> None:
    net = network("symlora")
    found = [module for module in net.modules() if isinstance(module, SymLoRA)]
    with torch.no_grad():
        for number, adapter in enumerate(found):
            adapter.Q.mul_(1 + 0.1 * number)
    penalty = surgery.orthogonality_penalty(net)
    expected = sum(float(adapter.orthogonality_penalty()) for adapter in found)
    assert len(found) == 4 and penalty.item() == pytest.approx(expected) and expected > 0.1
    optimizer = torch.optim.SGD([adapter.Q for adapter in found], lr=0.05)
    for _ in range(50):
        optimizer.zero_grad()
        surgery.orthogonality_penalty(net).backward()
        optimizer.step()
    assert surgery.orthogonality_penalty(net) < 1e-3


def test_a_model_without_them_is_refused() -> None:
    with pytest.raises(surgery.StateError, match="no SymLoRA adapter"):
        surgery.orthogonality_penalty(network("lora"))
