"""How fast the exported file is on a GPU, and how right: beside PyTorch's own ways, side by side in one run.

    python -m benchmarks.export_cuda [vit-b bert-base] [--batch 1 8 64] [--seconds 400]
    python -m benchmarks.export_cuda vit-s --device cpu --batch 1     # a rehearsal without a GPU

Half precision throughout. Inputs and outputs stay on the device: torch's tensors, which ONNX Runtime
is bound to. A call is timed from its start until the device has finished. Contenders take turns in every round;
times are medians over all rounds. Rows with a CUDA graph replay one, recorded at that one size:
``reduce-overhead`` is torch's word for it. Our file takes and returns fp32, as all our files do, and casts on the
device; the plain export takes fp16. Errors are against the model in fp32 without TF32, on the same inputs.
Figures are kept after every batch size, so that a run that is cut off leaves what it has measured.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.clocks import Budget
from benchmarks.export_cuda_ways import (
    EAGER,
    OURS,
    WAYS,
    Call,
    Figures,
    Made,
    contenders,
    leaves,
    prepare,
)
from benchmarks.record import keep_beside
from exporters.inputs import Inputs
from exporters.parity import relative_error


@torch.no_grad()
def measure(made: Made, batch: int, given: argparse.Namespace, budget: Budget) -> Figures:
    """Time, error and agreement of every contender at one batch size."""
    device = torch.device(given.device)
    inputs = made.inputs.resized({"batch": batch}).on(device, torch.float32)
    # Masks at other sizes become ragged; here all tokens are real.
    full = {n: torch.ones_like(t) if "mask" in n else t for n, t in inputs.tensors.items()}
    inputs = Inputs(full, inputs.constants, inputs.axes)
    expected = leaves(made.model(**inputs.kwargs))
    shapes = [leaf.shape for leaf in expected]
    ready, failures = contenders(made, inputs, shapes, budget, not given.no_compile)
    right = {way: _compare(expected[0], call()) for way, call in ready.items()}
    times = _take_turns(ready, given.rounds, given.calls, _finisher(device), budget)
    rows = {way: {**_summary(taken), **right[way]} for way, taken in times.items()}
    sizes = {name: list(t.shape) for name, t in inputs.tensors.items()}
    return {"inputs": sizes, "rows": rows, **made.about, "not_run": failures}


def _compare(expected: Tensor, found: Tensor) -> Figures:
    wanted, got = (t.float().cpu().numpy() for t in (expected, found))
    agrees = (wanted.argmax(-1) == got.argmax(-1)).mean()
    return {"error": relative_error(wanted, got), "top1": float(agrees)}


def _take_turns(
    ready: dict[str, Call], rounds: int, calls: int, finish: Callable[[], None], budget: Budget
) -> dict[str, list[float]]:
    """Milliseconds of each measured call; the first of each turn is not measured."""
    times: dict[str, list[float]] = {way: [] for way in ready}
    for number in range(rounds):
        if number and budget.is_spent:
            break
        for way, call in ready.items():
            call()
            finish()
            for _ in range(calls):
                started = time.perf_counter()
                call()
                finish()
                times[way].append(1000 * (time.perf_counter() - started))
    return times


def _finisher(device: torch.device) -> Callable[[], None]:
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


def _summary(taken: list[float]) -> Figures:
    low, median, high = statistics.quantiles(taken, n=4)
    figures = {
        "calls": len(taken),
        "median_ms": median,
        "lowest_ms": min(taken),
        "quartiles_ms": [low, high],
    }
    return {key: _rounded(value) for key, value in figures.items()}


def _rounded(value: Any) -> Any:
    return [round(each, 3) for each in value] if isinstance(value, list) else round(value, 3)


def as_markdown(figures: dict[str, Figures]) -> str:
    """One line a model and batch: milliseconds of each way; sites fused, error of ours and of eager fp16."""
    header = ["model", *(f"{way}, ms" for way in WAYS), "sites fused", "error", "error eager"]
    lines = [header, ["---"] * len(header)]
    for name, found in figures.items():
        rows = found["rows"]
        times = [f"{rows[way]['median_ms']:.2f}" if way in rows else "-" for way in WAYS]
        errors = [f"{rows[way]['error']:.0e}" if way in rows else "-" for way in (OURS, EAGER)]
        lines.append([name, *times, found.get("sites", "-"), *errors])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    """Measure what was asked for, and keep it beside what was measured before."""
    given = _arguments()
    warnings.filterwarnings("ignore")
    # The reference is fp32; what runs in half precision is not concerned.
    torch.backends.cudnn.allow_tf32 = False
    torch._dynamo.config.recompile_limit = 32
    budget = Budget(given.seconds)
    with tempfile.TemporaryDirectory() as folder:
        for name in given.models:
            made = prepare(name, Path(folder), torch.device(given.device))
            print(name, made.about, flush=True)
            for batch in given.batch:
                key = f"{name}, batch {batch}"
                try:
                    budget.check()
                    found = measure(made, batch, given, budget)
                except TimeoutError as error:
                    print(f"{key}: {error}")
                    return
                keep_beside("export_cuda", key, found)
                print(as_markdown({key: found}), found["not_run"], flush=True)
            torch._dynamo.reset()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", nargs="*", default=["vit-b", "bert-base"], metavar="MODEL")
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 8, 64])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=20, help="measured calls of each turn")
    parser.add_argument("--seconds", type=float, default=600, help="begin nothing after that")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    return parser.parse_args()


if __name__ == "__main__":
    main()
