"""Models that arrive wrapped: unwrap what is harmless, refuse what surgery would break."""

from __future__ import annotations

from torch import nn

from surgery.errors import StateError

_REFUSED = {
    "DistributedDataParallel": "read and apply before wrapping in DDP; wrap the adapted model",
    "DataParallel": "read and apply on the plain model (model.module), then wrap it",
    "FullyShardedDataParallel": "read and apply before sharding; shard the adapted model",
    "PeftModel": "call model.merge_and_unload() or start from the plain base model",
}


def unwrap(model: nn.Module) -> nn.Module:
    """Return the plain model: the original of a torch.compile wrapper, or the model itself.

    Raises:
        StateError: If the model is wrapped by DDP, FSDP or PEFT; it says what to do first.
    """
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
            remedy=_REFUSED["FullyShardedDataParallel"],
        )
    return model
