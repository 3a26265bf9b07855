"""PiSSA."""

from __future__ import annotations

import pytest
import torch

from surgery.adapters import PiSSA


def test_mass_is_shared_equally_between_the_factors(started):
    adapter = started("pissa", 20, 30, rank=4, alpha=8.0)
    torch.testing.assert_close(adapter.B.norm(dim=0), adapter.A.norm(dim=1))
    assert sum(p.numel() for p in adapter.parameters()) == 4 * (20 + 30)


def test_takes_no_options_of_srlora():
    with pytest.raises(TypeError, match="target_rank"):
        PiSSA(8, 8, rank=2, target_rank=4)


def test_start_is_the_same_whoever_asks(started):
    first, again = (started("pissa", 20, 30, rank=4) for _ in range(2))
    assert torch.equal(first.B, again.B)
