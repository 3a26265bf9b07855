"""The loss of a run: cross-entropy of the logits, whichever library the model is from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from surgery.anatomy.capture import unchanged
from surgery.errors import RunError


def logits_of(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Run a model on a batch; its logits, (n, classes) or (n, tokens, words), and the labels."""
    inputs = dict(batch)
    labels = inputs.pop("labels")
    outputs = model(**inputs)
    return outputs if isinstance(outputs, Tensor) else outputs.logits, labels


@torch.no_grad()
def check_classes(
    model: nn.Module, batch: Mapping[str, Tensor], classes: Sequence[str], name: str
) -> None:
    """Refuse a model with more or fewer outputs than classes.

    Args:
        model: A classifier.
        batch: One sample.
        classes: Their names.
        name: Of the model, for errors.

    Raises:
        RunError: With both numbers.
    """
    device = next(model.parameters()).device
    with unchanged(model):
        logits, _ = logits_of(model, {key: value.to(device) for key, value in batch.items()})
    if logits.shape[1:] != (len(classes),):
        raise RunError(
            "the model has no output for each class",
            where=name,
            why=f"it gives {' x '.join(map(str, logits.shape[1:]))} numbers, and there are "
            f"{len(classes)} classes: {', '.join(classes[:5])}",
            remedy="have the factory build the head with as many outputs",
        )


def cross_entropy(
    logits: Tensor, labels: Tensor, *, shifted: bool, smoothing: float = 0.0
) -> Tensor:
    """The mean over samples, or, ``shifted``, over tokens that predict the next one; in float32."""
    if shifted:
        logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
