"""``rank: auto``: how much rank each projection gets is measured on a few batches before the training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from policies import Policy
from surgery.allocation import allocate
from surgery.runs import training_file
from surgery.runs.feed import Feeding
from surgery.runs.loss import cross_entropy, logits_of
from surgery.runs.schema import RunSpec
from surgery.runs.texts import Batch


def policy_for(
    model: nn.Module, spec: RunSpec, feeding: Feeding, device: torch.device | str = "cpu"
) -> Policy:
    """The policy of a training file, with its ranks.

    Args:
        model: The plain model, on the CPU; afterwards it is there again, as it was.
        spec: What the training file says.
        feeding: How the model is fed.
        device: Where to measure.

    Raises:
        PolicyError, AnatomyError, PlanError, CaptureError, StateError: As ``surgery.allocate``.
    """
    wanted = training_file.policy_of(spec)
    if not spec.policy.measured:
        return wanted

    def loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        placed = {name: tensor.to(device) for name, tensor in batch.items()}
        return cross_entropy(*logits_of(model, placed), shifted=feeding.shifted)

    model.to(device)
    try:
        return allocate(model, _batches(spec, feeding), wanted, loss=loss)
    finally:
        model.to("cpu")


def _batches(spec: RunSpec, feeding: Feeding) -> Iterator[Batch]:
    """Batches of training data, drawn by the seed; fewer than asked for if the data end."""
    size, samples = spec.schedule.batch, feeding.train
    draw = torch.randperm(len(samples), generator=torch.Generator().manual_seed(spec.seed))
    for numbers in torch.split(draw[: size * spec.policy.batches], size):
        yield feeding.collate([samples[n] for n in numbers.tolist()])
