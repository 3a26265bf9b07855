"""What autocast and casts of the model leave alone."""

from __future__ import annotations

import pytest
import torch

from surgery.adapters import get
from surgery.adapters.importance import Importance
from surgery.adapters.ledger import Ledger
from surgery.adapters.widths import uncast


def test_autocast_is_off_inside_and_on_again_after():
    a, b = torch.randn(4, 4), torch.randn(4, 4)
    product = uncast()(torch.matmul)
    with torch.autocast("cpu", torch.bfloat16):
        assert product(a, b).dtype is torch.float32
        assert torch.matmul(a, b).dtype is torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_ledgers_and_scores_keep_their_type_when_the_model_is_cast(dtype):
    for module in (Ledger(3, 4, 2), Importance(torch.Size([2, 3]), 0.5, 0.5)):
        types = {name: buffer.dtype for name, buffer in module.named_buffers()}
        module.to(dtype)
        assert {name: buffer.dtype for name, buffer in module.named_buffers()} == types
        assert module.to("meta").state_dict().keys() == types.keys()


def test_a_start_is_the_same_under_autocast(variant, weight_of):
    kind, options = variant
    found = []
    for enabled in (False, True):
        adapter = get(kind)(16, 12, rank=2, **options)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            adapter.start(weight_of(16, 12), torch.Generator().manual_seed(0))
        found.append(adapter)
    plain, under = found
    assert all(map(torch.equal, plain.state_dict().values(), under.state_dict().values()))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(under.delta(), plain.delta())


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float16, torch.float64])
def test_a_start_does_not_depend_on_the_default_type(variant, weight_of, default):
    kind, options = variant
    weight = weight_of(16, 12)
    plain = get(kind)(16, 12, rank=2, **options)
    plain.start(weight, torch.Generator().manual_seed(0))
    torch.set_default_dtype(default)
    try:
        other = get(kind)(16, 12, rank=2, **options)
        other.start(weight, torch.Generator().manual_seed(0))
    finally:
        torch.set_default_dtype(torch.float32)
    for one, two in zip(plain.state_dict().values(), other.state_dict().values(), strict=True):
        assert one.dtype is two.dtype
        assert torch.equal(one, two)


@pytest.mark.parametrize("kind", ["frozen-a", "polar"])
@pytest.mark.parametrize("shape", [(16, 12), (12, 16)])
def test_factors_have_one_type_where_parameters_alone_are_cast(kind, shape):
    """As FSDP2's MixedPrecisionPolicy does around a forward."""
    adapter = get(kind)(*shape, rank=2)
    adapter.start(torch.randn(shape[::-1]), torch.Generator().manual_seed(0))
    for parameter in adapter.parameters():
        parameter.data = parameter.data.bfloat16()
    assert {factor.dtype for factor in adapter.factors()} == {torch.bfloat16}
    adapter(torch.randn(3, shape[0], dtype=torch.bfloat16))
