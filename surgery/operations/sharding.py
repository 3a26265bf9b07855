"""Tensors of which each process holds a part (FSDP2's): gathered, and written to part by part.

Where a tensor is gathered, every process of its mesh has to ask for it, in the same order.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether it is a ``DTensor``; asked without importing them, which takes half a second."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def fully_sharded(model: nn.Module) -> list[FSDPModule]:
    """The modules that FSDP2 shards; a forward without backward leaves whole parameters in them until ``reshard``."""
    module = sys.modules.get("torch.distributed.fsdp")
    return [m for m in model.modules() if module and isinstance(m, module.FSDPModule)]


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """The tensor itself; or all parts of a sharded one put together, on the device of its mesh."""
    if not is_sharded(tensor):
        return tensor
    part = tensor.to_local().to(tensor.device_mesh.device_type)
    return as_part_of(tensor, part).full_tensor()


@torch.no_grad()
def write(tensor: Tensor, value: Tensor) -> None:
    """Write a whole value into a tensor, or this process's part of the value into its part."""
    if is_sharded(tensor):
        tensor.to_local().copy_(_part(value, tensor))
    else:
        tensor.copy_(value)


@torch.no_grad()
def clear(tensor: Tensor, dim: int, index: Tensor) -> None:
    """Set what lies at ``index`` along ``dim`` to zero. Nothing is gathered."""
    if not is_sharded(tensor):
        tensor.index_fill_(dim, index.to(tensor.device), 0)
        return
    cleared = torch.zeros(tensor.shape, dtype=torch.bool, device=index.device)
    mask = _part(cleared.index_fill_(dim, index, True), tensor)
    part = tensor.to_local()
    part.masked_fill_(mask.to(part.device), 0)


@torch.no_grad()
def change_whole(tensor: Tensor, how: Callable[[Tensor], object]) -> None:
    """Change a tensor in place by way of ``how``, which is given all of it."""
    everything = whole(tensor)
    how(everything)
    if everything is not tensor:
        write(tensor, everything)


@torch.no_grad()
def laid_out_as(tensor: Tensor, value: Tensor) -> Tensor:
    """A copy of a whole value that lies as ``tensor`` does: on its device, and sharded as it is."""
    if not is_sharded(tensor):
        return value.to(tensor.device, copy=True)
    return as_part_of(tensor, _part(value, tensor).to(tensor.to_local().device, copy=True))


def as_part_of(tensor: DTensor, part: Tensor) -> DTensor:
    """A tensor that is sharded as ``tensor`` is and of which this process holds ``part``."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        part,
        tensor.device_mesh,
        tensor.placements,
        shape=tensor.shape,
        stride=tensor.stride(),
        run_check=False,
    )


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
            setattr(owner, name, nn.Parameter(whole(part).clone(), part.requires_grad))
        yield
        for owner, name, part in parts:
            write(part, owner.get_parameter(name))
    finally:
        for owner, name, part in parts:
            setattr(owner, name, part)


def _part(value: Tensor, tensor: DTensor) -> Tensor:
    """What this process holds of a whole value that is sharded as ``tensor`` is."""
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(
        value.detach(), tensor.device_mesh, tensor.placements, src_data_rank=None
    ).to_local()
