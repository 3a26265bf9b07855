"""Subjects on a device in some precision: made once, copied for each case."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

import surgery
from benchmarks.speed_subjects import Subject


@dataclass(frozen=True)
class Precision:
    """How a model is trained.

    Attributes:
        weights: Type of the base weights; the factors are float32 in every case.
        autocast: Whether the forward runs under autocast to bfloat16.
    """

    weights: torch.dtype
    autocast: bool

    def context(self, device: str) -> Callable[[], AbstractContextManager[object]]:
        """What the forward runs in."""
        return partial(torch.autocast, device, torch.bfloat16) if self.autocast else nullcontext


PRECISIONS = {
    "bf16 weights, autocast": Precision(torch.bfloat16, True),
    "bf16 weights": Precision(torch.bfloat16, False),
    "fp32 weights, autocast": Precision(torch.float32, True),
    "fp32": Precision(torch.float32, False),
}


def placed(subject: Subject, device: str, dtype: torch.dtype) -> Subject:
    """The subject on a device, its floating-point tensors in ``dtype``."""
    with torch.device(device):
        template: nn.Module = subject.make().to(dtype)
    batch = {name: _placed(tensor, device, dtype) for name, tensor in subject.batch.items()}
    return replace(subject, make=partial(copy.deepcopy, template), batch=batch)


def read(subject: Subject) -> surgery.Anatomy:
    """The anatomy, which needs no weights."""
    with torch.device("meta"):
        model = subject.make()
    return surgery.read(model)


def _placed(tensor: Tensor, device: str, dtype: torch.dtype) -> Tensor:
    return tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)
