"""A model that counts, averages or remembers what it sees is run and left as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_NAMED = ("_parameters", "_buffers", "_modules")


@contextmanager
def kept_state(model: nn.Module) -> Iterator[None]:
    """On leaving, every module has the attributes and buffers that it had, and buffers their values."""
    with kept_attributes(model), kept_buffers(model):
        yield


@contextmanager
def kept_attributes(model: nn.Module) -> Iterator[None]:
    """On leaving, every module holds the very objects that it held under the same names, and no others.

    Attributes, parameters, buffers and submodules are kept; what was written into one of them stays written.
    A module may keep what it computed: while a graph is captured that is no tensor to compute with.
    """
    kept = [(names, dict(names)) for module in model.modules() for names in _names(module)]
    try:
        yield
    finally:
        for names, before in kept:
            if _held(names) != _held(before):
                names.clear()
                names.update(before)


def _names(module: nn.Module) -> Iterator[dict[str, Any]]:
    """The dictionaries in which a module keeps things by name; TorchScript keeps its own elsewhere."""
    names = vars(module)
    yield names
    yield from (names[kind] for kind in _NAMED if isinstance(names.get(kind), dict))


def _held(names: dict[str, Any]) -> list[tuple[str, int]]:
    return [(name, id(value)) for name, value in names.items()]


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
                if buffer._version != version and buffer.shape == value.shape:
                    buffer.copy_(value)
                now = module._buffers.get(name)
                if now is not None and now.shape == value.shape:
                    module._buffers[name] = buffer
