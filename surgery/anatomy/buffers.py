"""A model that counts, or averages what it sees, is run and left as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def kept_buffers(model: nn.Module) -> Iterator[None]:
    """On leaving, every buffer is the tensor that it was, with the values that it had.

    One that came back in another shape stays as it is: what the model remembers of its size is in no buffer.
    """
    kept = [
        (module, name, buffer, buffer.detach().clone(), buffer._version)
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and not buffer.is_inference()
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, value, version in kept:
                now = module._buffers.get(name)
                if now is None or now.shape != value.shape:
                    continue
                module._buffers[name] = buffer
                if buffer._version != version:
                    buffer.copy_(value)
