"""The singular start on real weights: how right its directions are, and what they cost.

    python -m benchmarks.directions

Weights are those of the DINOv2-S/14 backbone, every linear layer of every block, the fused qkv in thirds; and
weights of larger models' widths whose spectrum is that of a real one, stretched. Angles
are between leading spans and those of the decomposition in float64, for every j at which the spectrum has a gap of a
hundredth. Times are CPU seconds on one thread; reading from the cache includes hashing the weight.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.record import keep
from examples.dinov2 import state_dict
from surgery.adapters import cache, krylov, svd

COUNTS = (8, 32)
WIDTHS = (768, 1024)


def main() -> None:
    """Measure, print, keep."""
    torch.set_num_threads(1)
    found = [weight for name, weight in sorted(state_dict().items()) if is_linear(name, weight)]
    parts = [part.contiguous() for weight in found for part in thirds(weight)]
    real = next(part for part in parts if part.shape[0] == part.shape[1])
    subjects = {"DINOv2-S/14": parts}
    subjects |= {f"stretched to {n}": [stretched(real, n)] for n in WIDTHS}
    rows = [
        {"weights": name, **measured(weights, count)}
        for name, weights in subjects.items()
        for count in COUNTS
    ]
    keep("directions", {"clock": "process_time, one thread", "rows": rows})
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)


def is_linear(name: str, weight: Tensor) -> bool:
    return name.startswith("blocks.") and weight.ndim == 2


def thirds(weight: Tensor) -> tuple[Tensor, ...]:
    """A fused qkv is adapted role by role."""
    out, width = weight.shape
    return torch.split(weight, width) if out == 3 * width else (weight,)


def stretched(weight: Tensor, width: int) -> Tensor:
    """A random square weight of ``width`` with the spectrum of ``weight``, and ragged as that is."""
    generator = torch.Generator().manual_seed(0)
    values = torch.linalg.svdvals(weight)[None, None]
    values = torch.nn.functional.interpolate(values, width, mode="linear")[0, 0]
    values = values * torch.exp(0.02 * torch.randn(width, generator=generator))
    left, right = (torch.linalg.qr(torch.randn(width, width, generator=generator))[0] for _ in "uv")
    made: Tensor = (left * values) @ right
    return made


def measured(weights: list[Tensor], count: int) -> dict[str, Any]:
    worst, spans, iterated = 0.0, 0, 0
    times: dict[str, list[float]] = {"computed": [], "exact": [], "cached": []}
    with tempfile.TemporaryDirectory() as folder:
        for weight in weights:
            os.environ[cache.FOLDER] = "off"
            ours, exactly = partial(svd.leading, weight, count), partial(full, weight)
            seconds, triplets = timed(ours)
            times["computed"].append(seconds)
            times["exact"].append(timed(exactly)[0])
            os.environ[cache.FOLDER] = folder
            ours()
            times["cached"].append(timed(ours)[0])
            found = list(angles(weight, *triplets))
            worst, spans = max([worst, *found]), spans + len(found)
            iterated += svd.is_few(weight, count) and krylov.leading(weight, count) is not None
    medians = {f"{name} ms": round(1e3 * statistics.median(t), 2) for name, t in times.items()}
    return {
        "number": len(weights),
        "directions": count,
        "worst angle": float(f"{worst:.1e}"),
        "spans with a gap": spans,
        "by iteration": iterated,
        **medians,
    }


def angles(weight: Tensor, u: Tensor, s: Tensor, vh: Tensor) -> Iterator[float]:
    """Largest principal angle (its sine) of each leading span that ends at a gap, on both sides."""
    left, values, right = torch.linalg.svd(weight.double(), full_matrices=False)
    for j in range(1, len(s) + 1):
        if values[j - 1] - values[j] >= krylov.GAP * values[j - 1]:
            for ours, exact in ((u[:, :j], left[:, :j]), (vh[:j].T, right[:j].T)):
                off = ours.double() - exact @ (exact.T @ ours.double())
                yield float(torch.linalg.matrix_norm(off, 2))


def full(weight: Tensor) -> object:
    return torch.linalg.svd(weight, full_matrices=False)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    started = time.process_time()
    result = call()
    return time.process_time() - started, result


if __name__ == "__main__":
    main()
