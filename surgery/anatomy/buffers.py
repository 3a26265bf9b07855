"""A model that counts, averages or remembers what it sees is run and left as it was."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_PLAIN = (dict, OrderedDict, defaultdict, list, set)


@contextmanager
def kept_state(model: nn.Module) -> Iterator[None]:
    """On leaving, every module has the attributes and buffers that it had, and buffers their values."""
    with kept_attributes(model), kept_buffers(model):
        yield


@contextmanager
def kept_attributes(model: nn.Module) -> Iterator[None]:
    """On leaving, every module holds the very objects that it held under the same names, and no others.

    Attributes, parameters, buffers, submodules, and what dictionaries, lists and sets of these hold are kept; what was
    written into a tensor stays written. A module may keep what it computed (a bias by device): while a graph is
    captured that is no tensor to compute with.
    """
    kept = [(container, copy.copy(container)) for container in _containers(model)]
    try:
        yield
    finally:
        for container, before in kept:
            if _held(container) != _held(before):
                container.clear()
                (container.extend if isinstance(container, list) else container.update)(before)


def _containers(model: nn.Module) -> Iterator[Any]:
    """The attributes of every module, and the plain containers among them, and in those."""
    pending: list[Any] = [vars(module) for module in model.modules()]
    seen = set()
    while pending:
        container = pending.pop()
        if type(container) in _PLAIN and id(container) not in seen:
            seen.add(id(container))
            yield container
            pending.extend(_values(container))


def _values(container: Any) -> Iterable[Any]:
    return container.values() if isinstance(container, dict) else container


def _held(container: Any) -> tuple[list[Any], list[int]]:
    """Names, if there are any, and identities."""
    names = list(container) if isinstance(container, dict) else []
    return names, [id(value) for value in _values(container)]


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
