"""What stands between a product and its softmax is taken only where a sum says the same."""

from __future__ import annotations

import pytest
import torch

from exporters.patterns.attention import AttentionMatch
from exporters.patterns.base import Refusal
from exporters.patterns.scores import Replay
from tests.exporters.patterns.sites import Spelled, match


class Filled(Spelled):
    """Scores of padding are replaced; what was put in their place is scaled with the others."""

    def __init__(self, value: float, factor: float | None = None) -> None:
        super().__init__(2, 3)
        self.value, self.factor = value, factor

    def attend(self, q, k, v, attention_mask=None):
        scores = (q @ k.mT).masked_fill(attention_mask[:, None, None, :] == 0, self.value)
        if self.factor is not None:
            scores = scores * self.factor
        return scores.softmax(-1) @ v


GIVEN = {"x": torch.randn(2, 4, 6), "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])}


@pytest.mark.parametrize("value", [-torch.inf, torch.finfo(torch.float32).min, -1e30])
def test_scores_may_be_replaced_by_what_no_score_moves(value):
    found, _, _ = match(Filled(value), GIVEN)
    assert isinstance(found, AttentionMatch)
    assert isinstance(found.mask.bias, Replay)


@pytest.mark.parametrize(
    ("value", "factor"), [(-1e4, None), (-10000, None), (-1e9, None), (-1e30, 1e-3)]
)
def test_scores_that_are_replaced_by_less_show_through_a_sum(value, factor):
    found, _, _ = match(Filled(value, factor), GIVEN)
    assert isinstance(found, Refusal)
    assert found.why == f"masked_fill puts {value} in the place of scores: no sum says the same"
