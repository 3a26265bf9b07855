"""LoRA's start."""

from __future__ import annotations

import math

import pytest
import torch

from surgery.adapters import LoRA
from surgery.errors import PlanError


def test_kaiming_start_is_uniform_within_its_bound(started):
    a = started("lora", 400, 10, rank=8).A
    bound = 1 / math.sqrt(400)
    assert 0.95 * bound < a.abs().max() <= bound
    assert abs(a.std() - bound / math.sqrt(3)) < 0.05 * bound


def test_gaussian_start_has_variance_one_over_rank(started):
    a = started("lora", 400, 16, rank=16, init="gaussian").A
    assert abs(a.std() - 0.25) < 0.01


def test_start_depends_on_the_generator_alone(started):
    first, again, other = (started("lora", 8, 8, rank=2, seed=seed).A for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_weights_trained():
    assert sum(p.numel() for p in LoRA(30, 20, rank=4).parameters()) == 4 * (30 + 20)


def test_unknown_start_is_refused():
    with pytest.raises(PlanError, match="unknown start 'zeros'"):
        LoRA(4, 4, rank=1, init="zeros")
