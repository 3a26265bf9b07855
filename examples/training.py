"""Fine-tuning and reading off answers: an ordinary loop, nothing of it knows about adapters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.digits import Images

WARM_UP = 0.1
LARGEST_GRADIENT = 1.0

Progress = Callable[[int], None]
"""Called with the number of images that were just done."""


@dataclass(frozen=True)
class Recipe:
    """How to fine-tune.

    Attributes:
        learning_rate: Peak rate, reached after a tenth of the steps; a cosine takes it to zero.
        steps: Optimizer steps.
        batch: Images a step.
    """

    learning_rate: float
    steps: int = 150
    batch: int = 20

    def rate(self, step: int) -> float:
        """Share of the peak rate at ``step`` (from 0)."""
        warm = max(1, round(WARM_UP * self.steps))
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, self.steps - warm)))


def optimizer_of(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW over whatever the surgery left trainable, as one plain group."""
    trainable = (p for p in model.parameters() if p.requires_grad)
    return torch.optim.AdamW(trainable, lr=recipe.learning_rate, weight_decay=0.0)


def fine_tune(
    model: nn.Module,
    images: Images,
    preprocess: nn.Module,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    *,
    seed: int,
    before_step: Callable[[], object] | None = None,
    progress: Progress = lambda done: None,
) -> list[float]:
    """Minimise cross-entropy.

    Args:
        model: Logits from preprocessed images; left in eval mode.
        images: What to learn from.
        preprocess: Stored pixels to the model's input.
        optimizer: Holds the trainable parameters.
        recipe: Steps, batch and rate.
        seed: Of the order of the images.
        before_step: Called between backward and the optimizer's step (SRLoRA's recomposition).
        progress: Called after every step.

    Returns:
        The loss of each step's batch.
    """
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, recipe.rate)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    order = batches(len(images), recipe.batch, torch.Generator().manual_seed(seed))
    losses = []
    model.train()
    for _, index in zip(range(recipe.steps), order, strict=False):
        batch = images[index]
        loss = F.cross_entropy(model(preprocess(batch.pixels)), batch.labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if before_step is not None:
            before_step()
        nn.utils.clip_grad_norm_(parameters, LARGEST_GRADIENT)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        progress(len(batch))
    model.eval()
    return losses


@torch.no_grad()
def run(
    function: Callable[[Tensor], Tensor],
    images: Images,
    preprocess: nn.Module,
    *,
    batch: int = 50,
    progress: Progress = lambda done: None,
) -> Tensor:
    """``function`` of every preprocessed image: features or logits, (n, width)."""
    parts = []
    for start in range(0, len(images), batch):
        pixels = images.pixels[start : start + batch]
        parts.append(function(preprocess(pixels)))
        progress(len(pixels))
    return torch.cat(parts)


def batches(size: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless batches of indices below ``size``: every one once before any twice."""
    queue = torch.empty(0, dtype=torch.long)
    while True:
        while len(queue) < batch:
            queue = torch.cat([queue, torch.randperm(size, generator=generator)])
        yield queue[:batch]
        queue = queue[batch:]
