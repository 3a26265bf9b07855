"""Loops over those rows that have something, such as experts with tokens: a graph loops over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from surgery.anatomy.graph import is_open

_NOTE = "a loop over what has rows (experts with tokens) runs over all: the file is right if one without adds nothing"
_FINDERS = (Tensor.nonzero, torch.nonzero)


class EveryRow(TorchFunctionMode):
    """``for row in mask.nonzero()``, whose rows depend on values: traced for every row that there may be.

    Rows are lists of one number, which modules may be named by. A row of nothing must then add nothing, as an
    expert without tokens does.

    Attributes:
        note: What a reader should know, if there was such a loop.
    """

    def __init__(self) -> None:
        super().__init__()
        self.note: str | None = None
        self._counts: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.unbind and args[0] in self._counts:
            self.note = _NOTE
            return tuple([row] for row in range(self._counts[args[0]]))
        found = func(*args, **(kwargs or {}))
        if func in _FINDERS and isinstance(found, Tensor) and is_open(found.shape[0]):
            (most, *others) = args[0].shape
            if not others and isinstance(most, int):
                self._counts[found] = most
        return found
