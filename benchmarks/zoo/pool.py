"""A worker process that examines many models and is replaced when one of them breaks it."""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

from benchmarks.zoo.record import UNBUILT, UNREAD, Record

_EXHAUSTED = ("alloc", "memory", "create a primitive")
_CONTEXT = multiprocessing.get_context("spawn")


class Worker:
    """One process; importing torch once serves many models.

    Args:
        zoo: ``timm`` or ``transformers``.
        seconds: Time limit of one model.
        gigabytes: Limit on the memory that the process allocates.
        models: Models after which the process is replaced, so that nothing piles up.
    """

    def __init__(self, zoo: str, seconds: float, gigabytes: float, models: int = 60) -> None:
        self.zoo, self.seconds, self.gigabytes, self.models = zoo, seconds, gigabytes, models
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None
        self._served = 0

    def examine(self, name: str) -> Record:
        """Examine one model; what an earlier one has left of the memory is not held against it."""
        used = self._served
        record = self._examine(name)
        if used and any(word in record.cause for word in _EXHAUSTED):
            self.stop()
            record = self._examine(name)
        return record

    def _examine(self, name: str) -> Record:
        """A process that hangs, dies or grows too big costs only this model."""
        pipe = self._ready()
        pipe.send(name)
        self._served += 1
        try:
            if pipe.poll(self.seconds):
                found: Record = pipe.recv()
                return found
            self.stop()
            return Record(name, status=UNREAD, cause=f"not done after {self.seconds:.0f} s")
        except (EOFError, ConnectionResetError):
            self.stop()
            return Record(name, status=UNBUILT, cause="the process died (out of memory?)")

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._process, self._served = None, 0

    def _ready(self) -> Connection:
        if self._served >= self.models:
            self.stop()
        if self._process is None or self._pipe is None:
            self._pipe, theirs = _CONTEXT.Pipe()
            self._process = _CONTEXT.Process(
                target=_serve, args=(self.zoo, theirs, self.gigabytes), daemon=True
            )
            self._process.start()
            theirs.close()
        return self._pipe


def sweep(worker: Worker, names: Iterable[str]) -> Iterator[Record]:
    """Records in the order of ``names``; the worker is stopped at the end, however that comes."""
    try:
        for name in names:
            yield worker.examine(name)
    finally:
        worker.stop()


def _serve(zoo: str, pipe: Connection, gigabytes: float) -> None:
    import logging
    import warnings

    limit = int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    from benchmarks.zoo.examine import examine
    from benchmarks.zoo.libraries import library

    models = library(zoo)
    while True:
        try:
            name = pipe.recv()
        except EOFError:
            return
        pipe.send(examine(models, name))
