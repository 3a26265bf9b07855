"""Models that arrive wrapped: unwrap what is harmless, refuse what surgery would break."""

from __future__ import annotations

from collections import defaultdict
from itertools import chain

from torch import Tensor, nn

from surgery.errors import StateError

_SHARDED = (
    "read and apply before sharding; to fold or save, gather its state dict (docs/training.md) and load it "
    "into a model that was adapted alike and is whole"
)
_REFUSED = {
    "DistributedDataParallel": "read and apply before wrapping in DDP; for all else pass what is inside (model.module)",
    "DataParallel": "read and apply on the plain model (model.module), then wrap it",
    "FullyShardedDataParallel": _SHARDED,
    "PeftModel": "call model.merge_and_unload() or start from the plain base model",
}


_SEGMENTS = ("_orig_mod.", "_checkpoint_wrapped_module.")
"""What torch.compile and checkpoint wrappers put into the names of what is inside."""


def own_name(name: str) -> str:
    """The name of a tensor without the wrappers that its modules were put into."""
    for segment in _SEGMENTS:
        name = name.replace(segment, "")
    return name


def parameters_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter by its own name: the same before and after parts of the model are compiled or checkpointed."""
    return {own_name(name): parameter for name, parameter in model.named_parameters()}


def buffers_of(model: nn.Module) -> dict[str, Tensor]:
    """Every buffer by its own name."""
    return {own_name(name): buffer for name, buffer in model.named_buffers()}


def tied_names(model: nn.Module) -> list[list[str]]:
    """The names of each parameter that has several, as the model gives them."""
    names: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    return [group for group in names.values() if len(group) > 1]


def refuse_inference_tensors(model: nn.Module) -> None:
    """Raise for weights that were made under ``torch.inference_mode``: no gradient ever comes to them.

    Raises:
        StateError: With the first such weight.
    """
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_inference():
            raise StateError(
                f"the weights of {type(model).__name__} are inference tensors",
                where=name,
                why="torch neither trains them nor lets them be changed outside torch.inference_mode",
                remedy="make or load the model outside torch.inference_mode",
            )


def unwrap(model: nn.Module) -> nn.Module:
    """Return the plain model: the original of a torch.compile wrapper, or the model itself.

    Raises:
        StateError: If the model is wrapped by DDP, FSDP or PEFT, or is none; it says what to do first.
    """
    if not isinstance(model, nn.Module):
        raise StateError(
            f"a {type(model).__name__} is no model",
            why="surgery works on an nn.Module",
            remedy="pass the model first: surgery.apply(model, 'vit-attn-qv')",
        )
    original = getattr(model, "_orig_mod", None)
    if isinstance(original, nn.Module):
        return unwrap(original)
    for kind in type(model).__mro__:
        if kind.__name__ in _REFUSED and kind.__module__.startswith(("torch.", "peft.")):
            raise StateError(
                f"the model is wrapped in {kind.__name__}",
                why="surgery works on the plain model",
                remedy=_REFUSED[kind.__name__],
            )
    if any(kind.__name__ == "FSDPModule" for kind in type(model).__mro__):
        raise StateError(
            "the model is sharded by fully_shard",
            why="its weights are split over processes",
            remedy=_SHARDED,
        )
    return model
