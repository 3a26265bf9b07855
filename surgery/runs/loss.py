"""The loss of a run: cross-entropy of the logits, whichever library the model is from."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F


def logits_of(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Run a model on a batch; its logits, (n, classes) or (n, tokens, words), and the labels."""
    inputs = dict(batch)
    labels = inputs.pop("labels")
    outputs = model(**inputs)
    return outputs if isinstance(outputs, Tensor) else outputs.logits, labels


def cross_entropy(
    logits: Tensor, labels: Tensor, *, shifted: bool, smoothing: float = 0.0
) -> Tensor:
    """The mean over samples, or, ``shifted``, over tokens that predict the next one; in float32."""
    if shifted:
        logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
