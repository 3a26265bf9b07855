"""Clocks for contenders in one process: each has its turn, so that a busy machine slows all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

_ROUNDS, _CALLS, _WARMUP = 2, 8, 2
_TURN_MS = 500.0
"""About what a turn of a quick look takes; of longer calls there is one alone."""

Contenders = Mapping[str, Callable[[], Any]]


@dataclass(frozen=True)
class Beside:
    """One call of the model and of its file, side by side on the CPU when the file was verified.

    Attributes:
        model_ms: The fastest call of eager PyTorch in fp32, in milliseconds.
        file_ms: The fastest of ONNX Runtime.
        sizes: Size of each dynamic axis.
        threads: Of both.
        calls: Measured calls of each.
    """

    model_ms: float
    file_ms: float
    sizes: dict[str, int]
    threads: int
    calls: int


def quick_look(
    model: Callable[[], Any], file: Callable[[], Any], sizes: dict[str, int], threads: int
) -> Beside:
    """Time a model and its file in a second or two, or by one call of each: what to expect, and no benchmark."""
    with torch.no_grad():
        first = {"model": milliseconds(model), "file": milliseconds(file)}
    longest = max(first.values())
    if longest > _TURN_MS:
        return Beside(first["model"], first["file"], sizes, threads, 1)
    calls = min(_CALLS, int(_TURN_MS / longest))
    contenders = {"model": model, "file": file}
    times = take_turns(contenders, _ROUNDS, calls, min(calls, _WARMUP))
    return Beside(min(times["model"]), min(times["file"]), sizes, threads, _ROUNDS * calls)


@torch.no_grad()
def take_turns(
    contenders: Contenders, rounds: int, calls: int, warmup: int
) -> dict[str, list[float]]:
    """Milliseconds of each measured call; ``warmup`` calls before those of a turn are not measured."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            turn = [milliseconds(call) for _ in range(warmup + calls)]
            times[name] += turn[warmup:]
    return times


def milliseconds(call: Callable[[], Any]) -> float:
    """What one call takes."""
    started = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - started)


@contextmanager
def threads_of_torch(count: int | None) -> Iterator[int]:
    """Give PyTorch ``count`` threads for a while; None leaves its own. Yields how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield count or before
    finally:
        torch.set_num_threads(before)
