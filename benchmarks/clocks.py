"""How long a call takes on a device: by the device's own events where it has some, else by CPU time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch


def events(call: Callable[[], object], device: str, times: int = 1) -> float:
    """Seconds of one of ``times`` calls in a row; on a GPU by CUDA events, else CPU time.

    The calls follow each other as in a training loop, so what Python needs to launch them counts only
    where the GPU has to wait for it.
    """
    if device != "cuda":
        started = time.process_time()
        for _ in range(times):
            call()
        return (time.process_time() - started) / times
    event: Any = torch.cuda.Event
    begin, end = event(enable_timing=True), event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    for _ in range(times):
        call()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / times


def wall(call: Callable[[], object], device: str) -> float:
    """Wall seconds of one call until the device has done its work."""
    wait(device)
    started = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - started


def wait(device: str) -> None:
    """Until everything launched is done."""
    if device == "cuda":
        torch.cuda.synchronize()


class Budget:
    """Wall time after which nothing new is begun."""

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds; negative once it is over."""
        return self._until - time.monotonic()

    @property
    def is_spent(self) -> bool:
        """Whether the time is over."""
        return self.left < 0

    def check(self, needed: float = 0) -> None:
        """Raise TimeoutError if less than ``needed`` seconds are left."""
        if self.left < needed:
            raise TimeoutError("no time was left for it")


def peak_bytes(call: Callable[[], object], device: str) -> int | None:
    """What a call allocates at most above what was allocated before; None without a GPU."""
    if device != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated() - before)
