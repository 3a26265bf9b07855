"""What weights held before they were written to."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_CHUNK = 2**25
"""Bytes taken from the system at a time."""
_ALIGNED = 64


class Journal:
    """Copies of views, to be written back if the work fails.

    On the CPU the copies lie one behind the other in large pieces of memory. numpy asks Linux for huge pages
    for those, and torch does not: to touch new memory of 4 kB pages takes longer than to fold a weight.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._free = torch.empty(0, dtype=torch.uint8)

    @torch.no_grad()
    def keep(self, view: Tensor) -> None:
        """Remember what ``view`` holds."""
        saved = self._room_for(view).copy_(view)
        self._kept.append((view, saved))

    @torch.no_grad()
    def restore(self) -> None:
        """Write everything back, the last first."""
        for view, saved in reversed(self._kept):
            view.copy_(saved)

    def _room_for(self, view: Tensor) -> Tensor:
        if view.device.type != "cpu" or not view.numel():
            return torch.empty_like(view)
        size = view.numel() * view.element_size()
        if len(self._free) < size:
            self._free = torch.from_numpy(np.empty(max(size, _CHUNK), np.uint8))
        room, self._free = self._free[:size], self._free[-(-size // _ALIGNED) * _ALIGNED :]
        return room.view(view.dtype).view(view.shape)
