"""LoRA with a frozen A."""

from __future__ import annotations

import torch


def test_a_is_orthonormal_saved_and_does_not_train(started):
    adapter = started("frozen-a", 40, 20, rank=6)
    torch.testing.assert_close(adapter.A @ adapter.A.T, torch.eye(6), rtol=0, atol=1e-5)
    assert [name for name, _ in adapter.named_parameters()] == ["B"]
    assert "A" in adapter.state_dict()
    assert sum(p.numel() for p in adapter.parameters()) == 6 * 20
