"""The baseline and the loop: they learn what can be learnt, and see what they should see."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from examples import probe, training
from examples.digits import Images
from examples.training import Recipe


def blobs(per_class: int, *, noise: float, seed: int) -> tuple[Tensor, Tensor]:
    """Three Gaussian classes, far from the origin and of very different scale per feature."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(3).repeat(per_class)
    centres = torch.eye(3, 6)[labels] + noise * torch.randn(len(labels), 6, generator=generator)
    return centres * torch.tensor([1.0, 100.0, 0.01, 1.0, 1.0, 1.0]) + 50, labels


def test_the_probe_separates_what_is_separable() -> None:
    head = probe.fit(*blobs(50, noise=0.1, seed=0), classes=3)
    assert head.accuracy(*blobs(50, noise=0.1, seed=1)) == 1.0
    assert head.weight.shape == (3, 6)


def test_the_penalty_is_chosen_by_what_generalises() -> None:
    """Few noisy images in many features: the penalties differ, and the best held-out one is taken."""
    features, labels = blobs(10, noise=1.5, seed=2)
    wide = torch.cat(
        [features, torch.randn(30, 300, generator=torch.Generator().manual_seed(3))], 1
    )
    scores = {
        p: sum(probe._held_out(wide, labels, 3, p, fold) for fold in range(probe.FOLDS))
        for p in probe.PENALTIES
    }
    assert len(set(scores.values())) > 1
    assert scores[probe.fit(wide, labels, 3).penalty] == max(scores.values())


def test_folds_hold_out_every_image_once(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = blobs(25, noise=0.1, seed=0)
    features[:, 0] = torch.arange(len(labels))
    seen: list[float] = []

    def spy(self: probe.LinearHead, held_out: Tensor, _: Tensor) -> float:
        seen.extend(held_out[:, 0].tolist())
        return 0.0

    monkeypatch.setattr(probe.LinearHead, "accuracy", spy)
    for fold in range(probe.FOLDS):
        probe._held_out(features, labels, 3, 0.1, fold)
    assert sorted(seen) == list(range(len(labels)))


@pytest.fixture
def images() -> Images:
    """40 one-colour images; the label is whether they are bright."""
    pixels = torch.arange(40, dtype=torch.uint8)[:, None, None].repeat(1, 28, 28) * 6
    return Images(pixels, (pixels[:, 0, 0] > 120).long())


class Brightness(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.float().mean((1, 2))[:, None] / 255


def test_fine_tuning_learns_and_leaves_the_frozen_alone(images: Images) -> None:
    model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 2))
    model[0].weight.requires_grad_(False)
    frozen = model[0].weight.clone()
    recipe = Recipe(learning_rate=0.1, steps=60, batch=16)
    calls: list[bool] = []
    optimizer = training.optimizer_of(model, recipe)
    losses = training.fine_tune(
        model,
        images,
        Brightness(),
        optimizer,
        recipe,
        seed=0,
        before_step=lambda: calls.append(model[2].weight.grad is not None),
    )
    assert len(losses) == len(calls) == 60
    assert all(calls)
    assert losses[-1] < losses[0] / 2
    assert torch.equal(model[0].weight, frozen)
    assert not model.training
    assert len(optimizer.param_groups) == 1


def test_every_image_is_seen_once_before_any_twice() -> None:
    batches = training.batches(10, 4, torch.Generator().manual_seed(0))
    drawn = torch.cat([next(batches) for _ in range(5)]).tolist()
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert Counter(drawn).most_common(1)[0][1] == 2


def test_the_rate_warms_up_peaks_and_vanishes() -> None:
    rates = [Recipe(1.0, steps=50).rate(step) for step in range(51)]
    assert max(rates) == 1.0
    assert rates.index(1.0) == 4
    assert rates[-1] == pytest.approx(0)
    assert rates[5:] == sorted(rates[5:], reverse=True)


def test_run_keeps_order_and_counts(images: Images) -> None:
    done: list[int] = []
    out = training.run(lambda x: x * 2, images, Brightness(), batch=7, progress=done.append)
    torch.testing.assert_close(out, Brightness()(images.pixels) * 2)
    assert sum(done) == 40
