"""How fast the exported file is, and how right: ours beside the usual ways, side by side in one run.

    python -m benchmarks.export                    # everything
    python -m benchmarks.export --prepare vit-s    # only make the files
    python -m benchmarks.export vit-s bert-base    # only these

Models have their real sizes and random weights. Files are made once and kept in ``--folder``. Every
contender gets its turn in every round, so that a busy machine slows all alike; times are medians.
On a machine that others use at the same time, ``--clock cpu --threads 1`` counts only the time that
the calling thread itself was on a processor.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from onnxruntime.transformers.optimizer import optimize_model
from onnxscript.rewriter.ort_fusions import optimize_for_ort
from torch import nn
from transformers import PreTrainedModel

import exporters
from benchmarks.export_subjects import SUBJECTS, Subject
from benchmarks.record import keep_beside
from exporters.inputs import Inputs
from exporters.parity import relative_error
from exporters.runtime import SessionOptions, optimized_operators, recommended_options, run

PLAIN = "plain dynamo export"
OURS = "ours"
THEIRS = "transformers' exporter"
EAGER = "torch eager"
ROUNDS, CALLS = 3, 4
"""Rounds there are at least, and calls of each contender in one."""
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.thread_time}


def prepare(name: str, folder: Path) -> dict[str, Any]:
    """Make the files of one model that are not there yet; say what became of its attention."""
    about = folder / f"{name}.json"
    if about.exists():
        found: dict[str, Any] = json.loads(about.read_text())
        return found
    torch.manual_seed(0)
    subject = SUBJECTS[name]
    model = subject.build().eval()
    inputs = subject.inputs(model)
    plain = folder / f"{name}.plain.onnx"
    plain_export(model, inputs, plain)
    failures = {}
    ways: dict[str, Callable[[Path], Any]] = {
        "ORT transformers optimizer": lambda path: _ort_optimizer(plain, subject, path),
        "onnxscript optimize_for_ort": lambda path: _onnxscript(plain, path),
        OURS: lambda path: exporters.to_onnx(
            model, path, example_inputs=inputs.kwargs, overwrite=True
        ),
        f"{OURS}, int8": lambda path: exporters.to_onnx(
            model, path, example_inputs=inputs.kwargs, overwrite=True, precision="int8"
        ),
    }
    if isinstance(model, PreTrainedModel):
        ways = {THEIRS: lambda path: _transformers_exporter(model, inputs, path), **ways}
    files = {PLAIN: plain.name}
    sites = ""
    for way, make in ways.items():
        suffix = re.sub("[^a-z0-9]+", "-", way.lower())
        path = folder / f"{name}.{suffix}.onnx"
        try:
            made = make(path)
        except Exception as error:  # whatever a tool raises is its result
            failures[way] = f"{type(error).__name__}: {str(error).splitlines()[0][:150]}"
            continue
        files[way] = path.name
        sites = f"{made.fused}/{len(made.sites)}" if way == OURS else sites
    result = {"files": files, "failures": failures, "sites": sites}
    about.write_text(json.dumps(result, indent=2))
    return result


def plain_export(model: nn.Module, inputs: Inputs, path: Path) -> None:
    """torch's own exporter, with the dynamic axes of ``inputs`` and nothing done to the graph."""
    dynamic = {
        name: dict.fromkeys(inputs.axes.get(name, {}), torch.export.Dim.AUTO)
        for name in inputs.tensors
    }
    shapes = {**dynamic, **dict.fromkeys(inputs.constants)}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (), path, kwargs=inputs.kwargs, dynamo=True, opset_version=20,
            dynamic_shapes=shapes, verbose=False, external_data=False,
        )  # fmt: skip


def _ort_optimizer(plain: Path, subject: Subject, path: Path) -> None:
    optimize_model(
        str(plain), model_type=subject.kind, num_heads=subject.heads, hidden_size=subject.width
    ).save_model_to_file(str(path))


def _onnxscript(plain: Path, path: Path) -> None:
    optimized, _ = optimize_for_ort(ir.load(plain), clear_metadata=True)
    ir.save(optimized, path)


def _transformers_exporter(model: nn.Module, inputs: Inputs, path: Path) -> None:
    """Its fusions for ONNX Runtime on CPUs; the weights lie beside the file."""
    from transformers.exporters import OnnxConfig, OnnxExporter  # new in transformers 5

    config = OnnxConfig(dynamic=True, ort_fusions="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = OnnxExporter().export(model, dict(inputs.kwargs), config=config)
    OnnxExporter.save_program(exported.program, path)


def measure(
    name: str, folder: Path, batch: int, clock: str, compiled: bool, seconds: float
) -> dict[str, Any]:
    """Time, error and attention operators of every contender at one batch size."""
    torch.manual_seed(0)
    prepared = prepare(name, folder)
    subject = SUBJECTS[name]
    model = subject.build().eval()
    inputs = subject.inputs(model).resized({"batch": batch})
    with torch.no_grad():
        expected = _leaves(model(**inputs.kwargs))[0].numpy()
    contenders: dict[str, Callable[[], Any]] = {EAGER: lambda: model(**inputs.kwargs)}
    if compiled:
        contenders["torch.compile"] = partial(torch.compile(model), **inputs.kwargs)
    checks, failures = {}, dict(prepared["failures"])
    for way, file in prepared["files"].items():
        try:
            session = exporters.open_session(folder / file, threads=torch.get_num_threads())
            error = relative_error(expected, run(session, inputs.feeds)[0])
        except Exception as problem:  # a file that its own engine does not run
            failures[way] = f"{type(problem).__name__}: {str(problem)[:150]}"
            continue
        contenders[way] = partial(run, session, inputs.feeds)
        checks[way] = {"error": error, "operators": attention_operators(folder / file)}
    times = _take_turns(contenders, CLOCKS[clock], seconds)
    rows = {
        way: {
            "median_ms": round(1000 * statistics.median(taken), 2),
            "lowest_ms": round(1000 * min(taken), 2),
            "to_plain": statistics.median(taken) / statistics.median(times[PLAIN]),
            **checks.get(way, {}),
        }
        for way, taken in times.items()
    }
    shapes = {n: list(t.shape) for n, t in inputs.tensors.items()}
    about = {"clock": clock, "threads": torch.get_num_threads(), "calls": len(times[PLAIN])}
    about["load"] = os.getloadavg()[0]
    return {
        "rows": rows,
        "sites": prepared["sites"],
        "inputs": shapes,
        **about,
        "failures": failures,
    }


@torch.no_grad()
def _take_turns(
    contenders: dict[str, Callable[[], Any]], clock: Callable[[], float], seconds: float
) -> dict[str, list[float]]:
    """Seconds of each measured call, in rounds for so long; the first of each turn is not measured."""
    times: dict[str, list[float]] = {way: [] for way in contenders}
    until = time.monotonic() + seconds
    while len(times[EAGER]) < ROUNDS * CALLS or time.monotonic() < until:
        for way, call in contenders.items():
            call()
            for _ in range(CALLS):
                started = clock()
                call()
                times[way].append(clock() - started)
    return times


def _leaves(outputs: Any) -> list[torch.Tensor]:
    return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs.values())


def attention_operators(path: Path, options: SessionOptions | None = None) -> dict[str, int]:
    """Attention operators that ONNX Runtime really runs, with the options that a file recommends or others."""
    found = optimized_operators(path, options or recommended_options(path))
    return {kind: count for (_, kind), count in found.items() if kind.endswith("Attention")}


WAYS = (
    EAGER,
    "torch.compile",
    "ORT transformers optimizer",
    "onnxscript optimize_for_ort",
    THEIRS,
    OURS,
    f"{OURS}, int8",
)


def as_markdown(figures: dict[str, dict[str, Any]]) -> str:
    """One line a model and batch: the plain export in milliseconds, all else relative to it."""
    header = ["model", "plain, ms", *WAYS, "sites fused", "error", "error int8"]
    lines = [header, ["---"] * len(header)]
    for name, found in figures.items():
        rows = found["rows"]
        ratios = [f"{rows[way]['to_plain']:.2f}" if way in rows else "-" for way in WAYS]
        errors = [f"{rows[way]['error']:.0e}" for way in WAYS[-2:]]
        plain = f"{rows[PLAIN]['median_ms']:.0f}"
        lines.append([name, plain, *ratios, found["sites"], *errors])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    """Measure what was asked for, and keep it beside what was measured before."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", nargs="*", help=f"of {', '.join(SUBJECTS)}")
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=60, help="of each row, at least")
    parser.add_argument("--prepare", action="store_true", help="only make the files")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--folder", type=Path, help="where the files are kept")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(exist_ok=True)
        for name in given.models or SUBJECTS:
            prepare(name, folder)
            for batch in () if given.prepare else given.batch:
                compiled = not given.no_compile
                found = measure(name, folder, batch, given.clock, compiled, given.seconds)
                print(as_markdown({f"{name}, batch {batch}": found}), flush=True)
                keep_beside("export", f"{name}, batch {batch}", found)


if __name__ == "__main__":
    main()
