"""From what the library reports to what the demo shows."""

from __future__ import annotations

import os
import platform
import resource
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor

from examples import charts
from examples.digits import Images
from examples.report import compact
from examples.results import Accuracy, Check, Digit, File, Latencies, Latency, Organ
from exporters import ExportReport, FileReport, LatencyReport
from exporters.precision import TOLERANCES
from exporters.verify import Verification
from policies.roles import Role
from surgery import Anatomy
from surgery.operations.fold import FoldReport
from surgery.operations.plan import Plan

SHOWN = 11
ROLES = {
    Role.QUERY: "query",
    Role.KEY: "key",
    Role.VALUE: "value",
    Role.ATTENTION_OUTPUT: "output",
    Role.UP: "mlp up",
    Role.GATE: "mlp gate",
    Role.DOWN: "mlp down",
}


def organs(anatomy: Anatomy, plan: Plan) -> tuple[Organ, ...]:
    """The map of the model: which projections of which block the plan adapts."""
    there = {p.role for p in anatomy.projections if p.layer is not None}
    cut = {(o.projection.role, o.projection.layer) for o in plan.operations}
    return tuple(
        Organ(name, tuple((role, layer) in cut for layer in range(anatomy.depth)))
        for role, name in ROLES.items()
        if role in there
    )


def accuracy(test: Images, frozen: Tensor, adapted: Tensor) -> Accuracy:
    """Count correct answers, and pick test images that only the adapted model reads.

    Args:
        test: The test images.
        frozen: (n,) answers of the baseline.
        adapted: (n,) answers of the adapted model.
    """
    rescued = ((frozen != test.labels) & (adapted == test.labels)).nonzero().flatten().tolist()
    digits = (
        Digit(charts.ink(test.pixels[i]), int(test.labels[i]), int(frozen[i]), int(adapted[i]))
        for i in rescued[:SHOWN]
    )
    before, after = (int((answers == test.labels).sum()) for answers in (frozen, adapted))
    return Accuracy(before, after, len(test), tuple(digits))


def files(report: ExportReport) -> tuple[File, ...]:
    """Both files, the portable one first."""
    return tuple(map(_file, sorted(report.files, key=lambda file: file.target != "portable")))


def checks(fold: FoldReport, same_layout: bool, report: ExportReport) -> tuple[Check, ...]:
    """Everything that was verified on the way.

    Args:
        fold: Report of the fold, which was given inputs to check.
        same_layout: Whether classes and state-dict keys are those of the plain model.
        report: Report of the export.
    """
    drift = fold.function_drift if fold.function_drift is not None else float("nan")
    return (
        Check(
            "The fold changes nothing but rounding.",
            f"weights by {compact(fold.drift)}, outputs by {compact(drift)}, relative",
            drift <= TOLERANCES["fp32"].error,
        ),
        Check(
            "No trace is left in the model.",
            "classes and state-dict keys are those of the plain model",
            same_layout,
        ),
        *(check for file in report.files for check in _file_checks(file)),
    )


def paths(report: ExportReport) -> dict[str, Path]:
    """The files to measure, by the names the report gives them."""
    return {
        f"{file.name} file": report.files[0].path.with_name(file.path) for file in files(report)
    }


def latency(report: LatencyReport) -> Latencies:
    """The contenders in the order they were measured, eager PyTorch first."""
    rows = (Latency(r.name, r.median_ms, r.low_ms, r.high_ms) for r in report.rows)
    batch = next(iter(report.sizes.values()))[0]
    return Latencies(tuple(rows), batch, report.threads, report.calls, report.notes)


def environment() -> dict[str, str]:
    """Versions, processor and threads."""
    packages = ("torch", "timm", "onnx", "onnxruntime")
    versions = {name: metadata.version(name) for name in packages}
    return {
        "python": platform.python_version(),
        **versions,
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
    }


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes."""
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def _file(file: FileReport) -> File:
    verification = _verification(file)
    counts = verification.operators
    return File(
        name="portable" if file.target == "portable" else "fused",
        path=file.path.name,
        size=file.bytes,
        nodes=file.nodes,
        parity=file.error if file.error is not None else float("nan"),
        tolerance=TOLERANCES["fp32"].error,
        agreement=verification.top1,
        expected={count.op_type: count.expected for count in counts},
        found={count.op_type: min(count.in_file, count.in_runtime) for count in counts},
    )


def _file_checks(file: FileReport) -> Iterator[Check]:
    shown = _file(file)
    batches = sorted({size for row in _verification(file).parity for size in row.sizes.values()})
    yield Check(
        f"The {shown.name} file computes what the model computes.",
        f"largest relative error {compact(shown.parity)} at batches {batches}",
        file.passed,
    )
    for name, expected in shown.expected.items():
        yield Check(
            f"Every {name} that was planned is there.",
            f"{shown.found[name]} of {expected}, in the file and in what ONNX Runtime runs",
            shown.found[name] == expected,
        )


def _verification(file: FileReport) -> Verification:
    assert file.verification is not None, "the demo never exports without verification"
    return file.verification


def _processor() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
