"""Whether launches or kernels bound a training step: kernel time against wall time, and the longest kernels."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.clocks import wait
from benchmarks.cuda.placed import PRECISIONS, placed, read
from benchmarks.cuda.training import MAIN, any_directions, step
from benchmarks.speed_cases import Case, cases_of
from benchmarks.speed_subjects import sizes_on, subjects
from surgery.adapters import svd

MODEL, TARGETS, RANK = "ViT-B", "all", 8
SHOWN = ("floor", "peft", "lora", "symlora")
STEPS, LONGEST = 2, 10


def rows(device: str, depth: int) -> Iterator[dict[str, Any]]:
    """One row for each case, all linears at rank 8."""
    subject = next(s for s in subjects(depth, sizes_on(device)) if s.name.startswith(MODEL))
    here = placed(subject, device, PRECISIONS[MAIN].weights)
    with patch.object(svd, "leading", any_directions):
        cases = cases_of(here, read(subject), TARGETS, RANK, PRECISIONS[MAIN].context(device))
    for name in SHOWN:
        yield {"model": subject.name, "case": name} | figures(cases[name], here.batch, device)


def figures(case: Case, batch: dict[str, Tensor], device: str) -> dict[str, Any]:
    """Milliseconds of a step: until all is launched, until all is done, and of its kernels.

    Where launching takes as long as the whole step, the GPU waits for Python.
    """
    for _ in range(STEPS):
        step(case, batch)
    wait(device)
    started = time.perf_counter()
    for _ in range(STEPS):
        step(case, batch)
    launched = time.perf_counter()
    wait(device)
    done = time.perf_counter()
    times = kernel_times(case, batch, device)
    longest = sorted(times.items(), key=lambda item: -item[1][0])[:LONGEST]
    return {
        "launched_ms": _per_step(launched - started),
        "wall_ms": _per_step(done - started),
        "kernels_ms": _per_step(sum(seconds for seconds, _ in times.values())),
        "launches": sum(count for _, count in times.values()) // STEPS,
        "longest_ms": {f"{name[:90]} x{n // STEPS}": _per_step(s) for name, (s, n) in longest},
    }


def kernel_times(case: Case, batch: dict[str, Tensor], device: str) -> dict[str, tuple[float, int]]:
    """Seconds and number of runs of each kernel over all steps; without a GPU, of each operator."""
    on_gpu = device == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as seen:
        for _ in range(STEPS):
            step(case, batch)
        wait(device)
    timed = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    found = {e.key: (getattr(e, timed) / 1e6, e.count) for e in seen.key_averages()}
    return {name: own for name, own in found.items() if own[0] > 0}


def _per_step(seconds: float) -> float:
    return round(1e3 * seconds / STEPS, 3)
