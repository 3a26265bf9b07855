"""Every timm family and transformers type whose attention the anatomy reads: does it export, verify, fuse?

    python -m benchmarks.export_whole timm [--resume] [--only GLOB] [--seconds 300]
    python -m benchmarks.export_whole transformers --resume

Which models these are, ``benchmarks/results/zoo_<library>.json`` says, one of each family or type. Tiny
random instances, made as the zoo makes them. Each result is kept in
``benchmarks/results/export_<library>.json`` before the next model starts; ``--resume`` goes on from there,
``--retry`` tries again what failed.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import signal
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import exporters
from benchmarks.export_zoo import as_table, outcome
from benchmarks.record import RESULTS, keep, load
from benchmarks.zoo.examine import Specimen, enliven
from benchmarks.zoo.libraries import library
from surgery.errors import SurgeryError

FIXED = "exported at fixed shapes"
_READ = ("proved", "partial")


def names(zoo: str) -> list[str]:
    """The first model that the anatomy reads of each timm family or transformers type, its base before its heads."""
    found = [m for m in load(f"zoo_{zoo}")["models"] if m["status"] in _READ]
    return list({m["family"]: m["model"] for m in reversed(found)}.values())[::-1]


def examine(zoo: str, name: str, seconds: int) -> dict[str, Any]:
    """Export the smallest instance that runs; where an error says so, at fixed shapes."""
    torch.manual_seed(0)

    def export(folder: str) -> exporters.ExportReport:
        with _at_most(seconds):
            specimen = next(library(zoo).specimens(name))
            enliven(specimen.model)
            return _open_or_fixed(specimen, Path(folder) / "model.onnx")

    with tempfile.TemporaryDirectory() as folder:
        return outcome(lambda: export(folder))


def _open_or_fixed(specimen: Specimen, path: Path) -> exporters.ExportReport:
    model = specimen.model.eval()
    try:
        return exporters.to_onnx(model, path, example_inputs=specimen.inputs)
    except SurgeryError as error:
        if "dynamic=False" not in (error.remedy or ""):
            raise
        report = exporters.to_onnx(model, path, example_inputs=specimen.inputs, dynamic=False)
        return replace(report, notes=(*report.notes, f"{FIXED}: {error.what}, {error.why}"))


@contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"not done within {seconds} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def counts(figures: dict[str, dict[str, Any]], asked: int) -> dict[str, int]:
    """Of how many models there are, how many were tried, exported and verified, and fused throughout."""
    passed = [found for found in figures.values() if found["passed"]]
    return {
        "models": asked,
        "tried": len(figures),
        "exported and verified": len(passed),
        "of them at fixed shapes": sum(
            note.startswith(FIXED) for found in passed for note in found["notes"]
        ),
        "all sites fused": sum(0 < found["sites"] == found["fused"] for found in passed),
        "sites": sum(found["sites"] for found in passed),
        "fused": sum(found["fused"] for found in passed),
    }


def main() -> None:
    """Examine, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("zoo", choices=("timm", "transformers"))
    parser.add_argument("--only", default="*", metavar="GLOB")
    parser.add_argument("--resume", action="store_true", help="leave out what is known")
    parser.add_argument("--retry", action="store_true", help="leave out what is known to work")
    parser.add_argument("--seconds", type=int, default=300, help="time limit of one model")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    gc.disable()  # it would walk through both libraries many times a model
    title, everything = f"export_{given.zoo}", names(given.zoo)
    path, figures = RESULTS / f"{title}.json", {}
    if path.exists() and (given.resume or given.retry or given.only != "*"):
        figures = load(title)["results"]
    known = {n for n, f in figures.items() if f["passed"] or not given.retry}
    known &= set(figures) if given.resume or given.retry else set()
    for name in everything:
        if name in known or not fnmatch.fnmatch(name, given.only):
            continue
        figures[name] = examine(given.zoo, name, given.seconds)
        print(name, figures[name], flush=True)
        gc.collect()
        keep(title, {"counts": counts(figures, len(everything)), "results": figures})
    console = Console()
    console.print(as_table(figures), counts(figures, len(everything)))


if __name__ == "__main__":
    main()
