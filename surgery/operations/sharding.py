"""Tensors of which each process holds a part (FSDP2's): gathered, and written to part by part.

Every process of the mesh has to make the same calls in the same order, for each of them waits for the others.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether it is a ``DTensor``; asked without importing them, which takes half a second."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or all parts of a sharded one, put together on the device where its part lies."""
    if not is_sharded(tensor):
        return tensor
    part = tensor.to_local()
    return _laid_out(part.to(tensor.device_mesh.device_type), tensor).full_tensor().to(part.device)


@torch.no_grad()
def keep(tensor: Tensor, value: Tensor) -> None:
    """Write a whole value into a tensor, or this process's part of the value into its part."""
    if is_sharded(tensor):
        tensor.to_local().copy_(_part(value, tensor))
    else:
        tensor.copy_(value)


@torch.no_grad()
def change(tensor: Tensor, how: Callable[[Tensor], object]) -> None:
    """Change a tensor in place, by its pairs: ``how`` is given all of it."""
    everything = whole(tensor)
    how(everything)
    if everything is not tensor:
        keep(tensor, everything)


@torch.no_grad()
def alike(value: Tensor, tensor: Tensor) -> Tensor:
    """A copy of a whole value that lies as ``tensor`` does: on its device, and sharded as it is."""
    if not is_sharded(tensor):
        return value.to(tensor.device, copy=True)
    return _laid_out(_part(value, tensor).to(tensor.to_local().device, copy=True), tensor)


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Inside, sharded parameters are whole; afterwards each process keeps its part of what they became.

    If what happens inside fails, they are as they were.
    """
    parts = [
        (owner, name, part)
        for owner in module.modules()
        for name, part in owner._parameters.items()
        if part is not None and is_sharded(part)
    ]
    try:
        for owner, name, part in parts:
            setattr(owner, name, nn.Parameter(whole(part), part.requires_grad))
        yield
        for owner, name, part in parts:
            keep(part, owner.get_parameter(name))
    finally:
        for owner, name, part in parts:
            setattr(owner, name, part)


def _part(value: Tensor, tensor: DTensor) -> Tensor:
    """What this process holds of a whole value that is sharded as ``tensor`` is."""
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(
        value.detach(), tensor.device_mesh, tensor.placements, src_data_rank=None
    ).to_local()


def _laid_out(part: Tensor, tensor: DTensor) -> DTensor:
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        part,
        tensor.device_mesh,
        tensor.placements,
        shape=tensor.shape,
        stride=tensor.stride(),
        run_check=False,
    )
