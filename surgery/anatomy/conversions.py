"""Modules that convert themselves, while they run, to what they already are (Switch Transformers' router).

``self.classifier = self.classifier.to(self.dtype)`` swaps weights, which torch.export's stand-ins do not allow.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn


@contextmanager
def idle_conversions() -> Iterator[None]:
    """Inside, ``module.to(...)`` does nothing where it would change nothing."""
    convert = nn.Module.to

    def converted(self: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        device, dtype, _, layout = torch._C._nn._parse_to(*args, **kwargs)
        tensors = chain(self.parameters(), self.buffers())
        if layout is None and all(_is(tensor, device, dtype) for tensor in tensors):
            return self
        return convert(self, *args, **kwargs)

    with mock.patch.object(nn.Module, "to", converted):
        yield


def _is(tensor: Tensor, device: torch.device | None, dtype: torch.dtype | None) -> bool:
    converts = tensor.is_floating_point() or tensor.is_complex()
    same_type = dtype is None or not converts or tensor.dtype == dtype
    return same_type and device in (None, tensor.device)
