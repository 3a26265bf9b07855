"""Symmetric recomposition: the polar form with the singular start, until it switches."""

from __future__ import annotations

import torch

from surgery.adapters import SymSRLoRA


def test_starts_as_the_polar_form_does(started):
    recomposed = started("sym-srlora", 12, 9, rank=3, alpha=5.0)
    polar = started("polar", 12, 9, rank=3, alpha=5.0, start="singular")
    assert torch.equal(recomposed.delta(), polar.delta())
    assert torch.equal(recomposed.R, polar.R)


def test_trains_half_of_what_srlora_trains(started):
    half, whole = (started(kind, 64, 64, rank=8) for kind in ("sym-srlora", "srlora"))
    counts = [sum(p.numel() for p in adapter.parameters()) for adapter in (half, whole)]
    assert counts == [8 * 65, 8 * 128]


def test_importance_does_not_depend_on_the_constant_in_l(trained):
    """|l dLoss/dl| = |L dLoss/dL|: the constant c = L / l cancels."""
    adapter = trained("sym-srlora", 12, 12, rank=3)
    b, a = adapter.factors()
    (b @ a).square().sum().backward()
    adapter.observe()
    twin = SymSRLoRA(12, 12, rank=3)
    twin.step = adapter.step / 4
    twin.R.copy_(adapter.R)
    with torch.no_grad():
        twin.Q.copy_(adapter.Q)
        twin.l.copy_(adapter.l * 4)
    b, a = twin.factors()
    (b @ a).square().sum().backward()
    twin.observe()
    torch.testing.assert_close(twin.scores(), adapter.scores())
