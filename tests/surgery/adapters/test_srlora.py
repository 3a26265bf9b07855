"""SRLoRA that never switches is PiSSA."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def test_is_pissa_step_for_step_when_the_target_rank_is_the_rank(started, weight_of):
    x, target = torch.randn(32, 16), torch.randn(32, 12)
    runs = []
    for kind, options in (("pissa", {}), ("srlora", {"target_rank": 4})):
        adapter = started(kind, 16, 12, rank=4, alpha=6.0, **options)
        c, d = adapter.correction()
        base = weight_of(16, 12) + c @ d
        optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
        losses = []
        for _ in range(15):
            optimizer.zero_grad()
            loss = F.mse_loss(F.linear(x, base) + adapter(x), target)
            loss.backward()
            if kind == "srlora":
                adapter.observe()
                assert len(adapter.recompose()) == 0
            optimizer.step()
            losses.append(loss.item())
        runs.append(losses)
    assert runs[0] == runs[1]
    assert runs[0][-1] < runs[0][0]
