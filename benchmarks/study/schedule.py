"""All runs of a study: rates first, then the other seeds of the best two rates, spread over processes."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field, fields
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.clocks import Budget
from benchmarks.record import RESULTS
from benchmarks.study.methods import METHODS
from benchmarks.study.runs import Run, perform
from surgery.atomic import replace_file

FOLDER = RESULTS / "study"
FINALISTS = 2
"""Rates that are tried with every seed: which of two is the better one, a single seed tells by chance."""
Record = dict[str, Any]


class Records:
    """The kept runs of one task, a line of JSON each.

    Args:
        task: Name of the task.
        steps: Of the runs that are asked for; what was kept of other lengths stays in the file.
        folder: Holds ``<task>.jsonl``.
    """

    def __init__(self, task: str, steps: int, folder: Path = FOLDER) -> None:
        self.task, self.steps = task, steps
        self._path = folder / f"{task}.jsonl"
        self._found = self._read()

    def missing(self, method: str, seeds: int) -> Iterator[Run]:
        """Runs without a record: every rate with seed 0, more rates while the best lies at an end, then seeds."""
        wanted = [self._run(method, rate, 0) for rate in METHODS[method].rates]
        further = self._further_rate(method)
        if further is not None:
            wanted.append(self._run(method, further, 0))
        else:
            pairs = product(self._finalists(method), range(1, seeds))
            wanted += [self._run(method, rate, seed) for rate, seed in pairs]
        yield from (run for run in wanted if run not in self._found)

    def add(self, record: Record) -> None:
        """Keep one more, beside what another study has kept in the meantime."""
        self._found = {**self._read(), _run_of(record): record}
        lines = "".join(f"{json.dumps(each)}\n" for each in self._found.values())
        self._path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self._path, lines.encode())

    def _read(self) -> dict[Run, Record]:
        lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.is_file() else []
        return {_run_of(record): record for record in map(json.loads, lines)}

    def best_rate(self, method: str) -> float | None:
        """Of the two rates that read most validation examples with seed 0, the better one on all seeds of both.

        None before every rate was tried.
        """
        everything = self._validations(method)
        known = {rate: everything[rate] for rate in self._finalists(method)}
        if not known:
            return None
        common = set.intersection(*(set(of_rate) for of_rate in known.values()))
        return max(known, key=lambda rate: sum(known[rate][seed] for seed in common))

    def is_at_an_end(self, method: str) -> bool:
        """Whether the best rate is the smallest or the largest that was tried."""
        return self._further_rate(method) is not None

    def _further_rate(self, method: str) -> float | None:
        """What to try next if the best rate lies at an end: as far from it again as its neighbour is."""
        rates, best = sorted(self._first(method)), self.best_rate(method)
        if best is None or best not in (rates[0], rates[-1]):
            return None
        neighbour = rates[1] if best == rates[0] else rates[-2]
        return float(f"{best * best / neighbour:.3g}")

    def _finalists(self, method: str) -> list[float]:
        """The rates that read most validation examples with seed 0; none before all were tried."""
        known = self._first(method)
        if not known.keys() >= set(METHODS[method].rates):
            return []
        return sorted(known, key=lambda rate: known[rate], reverse=True)[:FINALISTS]

    def _first(self, method: str) -> dict[float, float]:
        """What every rate that was tried reads on the validation examples, with seed 0."""
        found = self._validations(method)
        return {rate: by_seed[0] for rate, by_seed in found.items() if 0 in by_seed}

    def _validations(self, method: str) -> dict[float, dict[int, float]]:
        """What each rate reads on them with each seed."""
        found: defaultdict[float, dict[int, float]] = defaultdict(dict)
        for run, record in self._found.items():
            if run == self._run(method, run.rate, run.seed):
                found[run.rate][run.seed] = record["validation"]
        return found

    def chosen(self, method: str) -> list[Record]:
        """The runs of all seeds with the best rate."""
        rate = self.best_rate(method)
        return [
            record
            for run, record in self._found.items()
            if (run.method, run.rate, run.steps) == (method, rate, self.steps)
        ]

    def _run(self, method: str, rate: float, seed: int) -> Run:
        return Run(self.task, method, rate, seed, self.steps)


@dataclass
class Study:
    """What is to be run, and where.

    Attributes:
        records: Of each task.
        methods: Names of the methods.
        material: Folder of prepared material.
        device: As torch names it.
        seeds: Runs of each method at its best rate.
        workers: Processes.
        seconds: After which nothing new is started.
        replay: Whether steps on a GPU are captured once and replayed.
        failures: Runs that ended in an error; they are tried again next time.
    """

    records: Sequence[Records]
    methods: Sequence[str]
    material: Path
    device: str = "cpu"
    seeds: int = 3
    workers: int = 1
    seconds: float = float("inf")
    replay: bool = True
    failures: dict[Run, BaseException] = field(default_factory=dict)

    def run(self) -> Iterator[Record]:
        """Run what is missing; yield each record as it is kept."""
        budget = Budget(self.seconds)
        pool = ProcessPoolExecutor(self.workers, get_context("spawn"), _start)
        pending: dict[Future[Record], Run] = {}
        asked: set[Run] = set()
        try:
            while True:
                if budget.is_spent:  # what runs is kept
                    pending = {f: run for f, run in pending.items() if not f.cancel()}
                else:
                    self._submit(pool, pending, asked)
                if not pending:
                    return
                done, _ = wait(pending, timeout=1, return_when=FIRST_COMPLETED)
                for future in done:
                    run, error = pending.pop(future), future.exception()
                    if error is not None:
                        self.failures[run] = error
                        continue
                    yield self._kept(run, future.result())
        finally:
            pool.shutdown(cancel_futures=True)

    def _submit(
        self, pool: ProcessPoolExecutor, pending: dict[Future[Record], Run], asked: set[Run]
    ) -> None:
        for run in self._missing(asked):
            asked.add(run)
            pending[pool.submit(perform, *self._how(run))] = run

    def _how(self, run: Run) -> tuple[Run, Path, str, bool]:
        return run, self.material, self.device, self.replay

    def _missing(self, asked: set[Run]) -> list[Run]:
        pairs = product(self.methods, self.records)
        found = (run for method, kept in pairs for run in kept.missing(method, self.seeds))
        return [run for run in found if run not in asked]

    def _kept(self, run: Run, record: Record) -> Record:
        next(kept for kept in self.records if kept.task == run.task).add(record)
        return record


def _start() -> None:
    torch.set_num_threads(1)


def _run_of(record: Record) -> Run:
    return Run(**{field.name: record[field.name] for field in fields(Run)})
