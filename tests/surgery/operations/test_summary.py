from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn

from surgery.errors import StateError
from surgery.operations.summary import summary


def test_it_counts_what_trains_now(net: nn.Module, adapt: Callable[..., nn.Module]) -> None:
    adapt(net, rank=2, train=["head"])
    found = summary(net)
    assert found.trainable == found.plan.trainable
    net.head.requires_grad_(False)
    found = summary(net)
    assert found.trainable == found.plan.adapter_parameters
    assert found.total == sum(p.numel() for p in net.parameters())
    assert found.to_dict()["trainable"] == found.trainable
    for needed in ("attention.query", "blocks.*.attn.qkv.weight", f"{found.trainable:,} of"):
        assert needed in str(found)


def test_a_plain_model_has_nothing_to_summarise(net: nn.Module) -> None:
    with pytest.raises(StateError, match="no policy is applied"):
        summary(net)
