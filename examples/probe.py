"""The baseline: features of the frozen backbone under a logistic regression."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

PENALTIES = tuple(10.0**exponent for exponent in range(-4, 0))
FOLDS = 5


@dataclass(frozen=True)
class LinearHead:
    """A trained linear classifier on raw features.

    Attributes:
        weight: (classes, features).
        bias: (classes,).
        penalty: The L2 strength that cross-validation chose.
    """

    weight: Tensor
    bias: Tensor
    penalty: float

    def answers(self, features: Tensor) -> Tensor:
        """The class (n,) of each row of ``features`` (n, features)."""
        return F.linear(features, self.weight, self.bias).argmax(1)

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """Share of ``labels`` (n,) predicted from ``features`` (n, features)."""
        return (self.answers(features) == labels).double().mean().item()


def fit(features: Tensor, labels: Tensor, classes: int) -> LinearHead:
    """Train on cached features; the penalty is chosen by cross-validation on the same data.

    Args:
        features: (n, features) fp32.
        labels: (n,) int64.
        classes: Number of classes.
    """

    def score(penalty: float) -> float:
        return sum(_held_out(features, labels, classes, penalty, fold) for fold in range(FOLDS))

    with _one_thread():
        return _fit(features, labels, classes, max(PENALTIES, key=score))


def _held_out(features: Tensor, labels: Tensor, classes: int, penalty: float, fold: int) -> float:
    out = torch.arange(len(labels)) % (classes * FOLDS) // classes == fold
    return _fit(features[~out], labels[~out], classes, penalty).accuracy(features[out], labels[out])


def _fit(features: Tensor, labels: Tensor, classes: int, penalty: float) -> LinearHead:
    """Minimise cross-entropy + penalty / 2 |W|^2 on standardised features, with L-BFGS."""
    mean, std = features.mean(0), features.std(0).clamp_min(1e-6)
    inputs = (features - mean) / std
    weight = torch.zeros(classes, inputs.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=100,
        tolerance_grad=1e-4,
        tolerance_change=1e-6,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(inputs, weight, bias), labels)
        loss = loss + penalty / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    raw = weight.detach() / std
    return LinearHead(raw, bias.detach() - raw @ mean, penalty)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """These matrices are so small that more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
