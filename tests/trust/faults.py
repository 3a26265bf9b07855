"""Faults at the n-th step: of tensor operations, of writing files; raised, or the process killed."""

from __future__ import annotations

import builtins
import contextlib
import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

Act = Callable[[], None]


class Steps:
    """Counts steps and acts at the n-th, counted from 0; None never acts."""

    def __init__(self, at: int | None, act: Act) -> None:
        self.at, self.act, self.count = at, act, 0

    def __call__(self) -> None:
        self.count += 1
        if self.at is not None and self.count == self.at + 1:
            self.act()


class TensorFaults(TorchDispatchMode):
    """Every tensor operation that torch dispatches is a step."""

    def __init__(self, at: int | None, error: type[BaseException] = MemoryError) -> None:
        super().__init__()
        self.steps = Steps(at, lambda: raise_(error("injected")))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.steps()
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def file_faults(at: int | None, act: Act) -> Iterator[Steps]:
    """Every open, write, flush, fsync, replace, unlink is a step, before and after it is done.

    A write is done in halves, so that a file can be left half written.
    """
    steps = Steps(at, act)
    real = {name: getattr(os, name) for name in ("replace", "fsync", "unlink", "mkdir", "rmdir")}
    opened = builtins.open

    def guarded(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            steps()
            result = real[name](*args, **kwargs)
            steps()
            return result

        return call

    def open_(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if not set("wxa+") & set(mode):
            return opened(file, mode, *args, **kwargs)
        steps()
        return _File(opened(file, mode, *args, **kwargs), steps)

    try:
        for name in real:
            setattr(os, name, guarded(name))
        builtins.open = open_
        yield steps
    finally:
        builtins.open = opened
        for name, function in real.items():
            setattr(os, name, function)


class _File:
    def __init__(self, file: Any, steps: Steps) -> None:
        self._file, self._steps = file, steps

    def write(self, content: Any) -> int:
        half = len(content) // 2
        for part in (content[:half], content[half:]):
            self._steps()
            self._file.write(part)
            self._file.flush()
        self._steps()
        return len(content)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def raise_(error: BaseException) -> None:
    raise error


def disk_full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def kill() -> None:
    """kill -9 of this very process: no handler, no finally, no flush."""
    os.kill(os.getpid(), signal.SIGKILL)


def in_child(work: Callable[[], None]) -> int:
    """Run ``work`` in a forked process; the signal that killed it, or 0."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)  # a fork would wait for the threads that it lost
        with contextlib.suppress(BaseException):
            work()
            os._exit(0)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
