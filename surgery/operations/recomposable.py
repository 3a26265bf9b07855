"""Whether a model, an optimizer and the processes of a training can recompose."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from surgery.adapters.recompose import Recomposed
from surgery.errors import StateError
from surgery.operations.adapted import Adapted
from surgery.operations.identity import combined, digest
from surgery.operations.sharding import is_sharded

Factors = tuple[nn.Parameter, ...]
_PLACEMENTS = {"Shard", "Replicate"}


def factors_of(adapter: Recomposed) -> Factors:
    """What a recomposing adapter trains."""
    return tuple(parameter for parameter, _ in adapter.pairs().values())


def check_agreed(
    model: nn.Module,
    total_steps: int,
    adapters: Mapping[str, Recomposed],
    owners: Mapping[str, Adapted],
) -> None:
    """Refuse a training whose processes would not recompose alike: one would undo what the other learns.

    Every process of a distributed training calls it, DDP's own group where there is one.

    Raises:
        StateError: In every process, with the first two that differ in the schedule, or in the weights and
            directions, of which each keeps its own.
    """
    group = getattr(model, "process_group", None)
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(group) == 1:
        return
    schedule = total_steps, [(name, adapter.switches) for name, adapter in adapters.items()]
    kept = combined(map(digest, _kept_whole(adapters, owners)))
    found: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(found, (schedule, kept), group)
    for rank, (its_schedule, its_kept) in enumerate(found):
        if its_schedule != found[0][0]:
            raise StateError(
                "the processes disagree on when to recompose",
                where=f"processes 0 and {rank}",
                why=f"total_steps and switches are {str(found[0][0])[:100]} and {str(its_schedule)[:100]}",
                remedy="pass the same total_steps everywhere, that of the shortest share of the data",
            )
        if its_kept != found[0][1]:
            raise StateError(
                "the processes started from different weights",
                where=f"processes 0 and {rank}",
                why="each corrects the frozen weights from its own originals and directions, which differ",
                remedy="load the same weights, or seed them alike, in every process before surgery.apply",
            )


def _kept_whole(
    adapters: Mapping[str, Recomposed], owners: Mapping[str, Adapted]
) -> Iterator[torch.Tensor]:
    for owner in dict.fromkeys(owners.values()):
        yield from (graft.original for _, graft in owner.grafts() if graft.original is not None)
    for adapter in adapters.values():
        yield from adapter.buffers()


def check_trained(adapters: Mapping[str, Recomposed], optimizer: torch.optim.Optimizer) -> None:
    """Refuse what cannot recompose, and warn where weight decay would eat pretrained weight.

    Raises:
        StateError: If there is no adapter, one is split in a way that hides its pairs, or the optimizer
            does not train it.
    """
    if not adapters:
        raise StateError(
            "the model has no adapter that recomposes",
            remedy="apply a policy with adapter 'srlora', or train without a Recomposer",
        )
    _check_gatherable(adapters)
    decays = _decays(optimizer)
    for name, adapter in adapters.items():
        factors = factors_of(adapter)
        if not decays.keys() >= set(map(id, factors)):
            wrapped = "fully_shard" if any(map(is_sharded, factors)) else "surgery.apply"
            raise StateError(
                "the optimizer does not train an adapter of the model",
                where=name,
                why="its state could not be reset at a recomposition",
                remedy=f"make the optimizer after {wrapped}, of surgery.parameter_groups(model)",
            )
    for name, adapter in adapters.items():
        if decay := max(decays[id(p)] for p in factors_of(adapter)):
            _warn_of_decay(name, decay)
            return


def _decays(optimizer: torch.optim.Optimizer) -> dict[int, float]:
    """The weight decay of each parameter, by its id."""
    if not hasattr(optimizer, "param_groups"):
        raise StateError(
            f"a {type(optimizer).__name__} is no optimizer",
            remedy="pass the torch.optim.Optimizer that trains the adapters",
        )
    return {
        id(p): group.get("weight_decay", 0)
        for group in optimizer.param_groups
        for p in group["params"]
    }


def _warn_of_decay(name: str, decay: float) -> None:
    warnings.warn(
        f"weight decay {decay} wears away the pretrained weight that {name} and others carry: give the optimizer "
        "surgery.parameter_groups(model, weight_decay=...), where they have none",
        stacklevel=4,
    )


def check_seated(owners: Mapping[str, nn.Module]) -> None:
    """Refuse to go on without the adapters.

    Raises:
        StateError: If one was folded or taken out since.
    """
    bare = next((name for name, owner in owners.items() if not isinstance(owner, Adapted)), None)
    if bare is not None:
        raise StateError(
            "the adapters are no longer in the model",
            where=bare,
            why="surgery.fold or surgery.undo took them out",
            remedy="call recomposer.step() during the training only",
        )


def check_kept(adapters: Mapping[str, Recomposed], trained: Mapping[str, Factors]) -> None:
    """Refuse factors that took the place of those that the optimizer trains.

    Raises:
        StateError: With the first adapter that has others.
    """
    for name, adapter in adapters.items():
        now = factors_of(adapter)
        if any(ours is not its for ours, its in zip(now, trained[name], strict=True)):
            raise StateError(
                "an adapter has other factors than the optimizer trains",
                where=name,
                why="the model was sharded, or loaded with assign=True, after the Recomposer was made: the "
                "optimizer's state of them could not be reset",
                remedy="make optimizer and Recomposer when the model is sharded and loaded",
            )


def _check_gatherable(adapters: Mapping[str, Recomposed]) -> None:
    """Refuse factors that cannot be gathered pair by pair.

    Raises:
        StateError: With the first adapter that is flattened (FSDP1) or sharded in another way than FSDP2's.
    """
    for name, adapter in adapters.items():
        for parameter, dim in adapter.pairs().values():
            has_pairs = parameter.ndim > dim and parameter.shape[dim] == adapter.rank
            if not (
                isinstance(parameter, nn.Parameter) and has_pairs and _is_gatherable(parameter)
            ):
                raise StateError(
                    "an adapter that is split in this way cannot recompose",
                    where=name,
                    why=f"a factor is a {type(parameter).__name__} of shape {tuple(parameter.shape)}: its pairs "
                    "cannot be put together again",
                    remedy="shard with FSDP2 (fully_shard), or train under DDP",
                )


def _is_gatherable(parameter: nn.Parameter) -> bool:
    if is_sharded(parameter):
        return all(type(place).__name__ in _PLACEMENTS for place in parameter.placements)
    return not is_traceable_wrapper_subclass(parameter)
