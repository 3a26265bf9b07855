"""``len(x)`` of a tensor, of which Python makes a constant."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def open_lengths(model: nn.Module) -> Iterator[None]:
    """Inside, the code of the model's modules gets ``x.shape[0]`` where it asks for ``len(x)``.

    Python wants a number of ``len``, so that a batch size asked for in this way (RT-DETR and its kin do)
    would be the example's for good. Code that has a ``len`` of its own keeps it.
    """
    names = {type(module).__module__ for module in model.modules()}
    places = [
        vars(sys.modules[name])
        for name in names
        if name in sys.modules and name.partition(".")[0] != "torch"
    ]
    lent = [place for place in places if "len" not in place]
    for place in lent:
        place["len"] = _length
    try:
        yield
    finally:
        for place in lent:
            del place["len"]


def _length(x: Any) -> Any:
    return x.shape[0] if isinstance(x, Tensor) and x.dim() else builtins.len(x)
