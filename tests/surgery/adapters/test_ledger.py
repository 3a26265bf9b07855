"""The ledger."""

from __future__ import annotations

import torch

from surgery.adapters.ledger import Ledger


def pairs(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(5, count, generator=generator), torch.randn(count, 4, generator=generator)


def test_sums_what_was_entered_and_resumes():
    ledger = Ledger(4, 5, 6)
    assert ledger.factors()[0].shape == (5, 0)
    entered = [pairs(2, 0), pairs(3, 1)]
    ledger.enter(*entered[0])
    resumed = Ledger(4, 5, 6)
    resumed.load_state_dict(ledger.state_dict())
    for one in (ledger, resumed):
        one.enter(*entered[1])
        c, d = one.factors()
        assert one.entries == 5
        torch.testing.assert_close(c @ d, sum(b @ a for b, a in entered))


def test_forgets_everything():
    ledger = Ledger(4, 5, 6)
    ledger.enter(*pairs(6, 0))
    ledger.clear()
    c, d = ledger.factors()
    assert not (c @ d).any()
    ledger.enter(*pairs(6, 1))
    assert ledger.entries == 6


def test_keeps_the_type_asked_for():
    ledger = Ledger(4, 5, 6, dtype=torch.float64)
    assert (ledger.B.dtype, ledger.A.dtype, ledger.count.dtype) == (
        torch.float64, torch.float64, torch.long,
    )  # fmt: skip
