"""Progress bars, and how long each part of a job took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from examples.results import Stage


class Stages:
    """A job's stages, one progress line each.

    Use as a context manager around the job; ``done`` is the record.

    Args:
        console: Where the lines are drawn.
    """

    def __init__(self, console: Console) -> None:
        columns = (
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
        )
        self._progress = Progress(*columns, console=console)
        self.done: list[Stage] = []

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """One part of the job.

        Args:
            name: What it does, a few words.
            total: Units of work, if they can be counted.

        Yields:
            A function to call with the number of units just done.
        """
        task = self._progress.add_task(name, total=total)
        start = time.perf_counter()
        yield lambda units: self._progress.advance(task, units)
        self.done.append(Stage(name, time.perf_counter() - start))
        self._progress.update(task, total=total or 1, completed=total or 1)
