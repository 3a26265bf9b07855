"""What an export did and what its verification found: as data, as text, as a table for people."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporters.fuse import Site
from exporters.runtime import SessionOptions
from exporters.timing import Beside
from exporters.verify import Verification

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class FileReport:
    """One exported file.

    Attributes:
        path: Where it is, or where it would have been had it passed.
        target: ``portable`` or the target it was fused for.
        precision: Of its weights.
        bytes: Its size, weights included.
        nodes: Number of nodes in its graph.
        seconds: What it took to make and verify.
        session_options: How it is best opened; ``exporters.open_session`` does so.
        verification: What was found, or None if it was not asked for.
    """

    path: Path
    target: str
    precision: str
    bytes: int
    nodes: int
    seconds: float
    session_options: SessionOptions
    verification: Verification | None

    @property
    def problems(self) -> list[str]:
        """What was found against it."""
        return [] if self.verification is None else self.verification.problems

    @property
    def passed(self) -> bool:
        """Whether nothing was found against it."""
        return not self.problems

    @property
    def error(self) -> float | None:
        """The largest parity error over all outputs and sizes."""
        if self.verification is None or not self.verification.parity:
            return None
        return max(row.error for row in self.verification.parity)

    @property
    def latency(self) -> Beside | None:
        """Model and file side by side, where the file was timed."""
        return None if self.verification is None else self.verification.latency

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return {
            "path": str(self.path),
            "target": self.target,
            "precision": self.precision,
            "bytes": self.bytes,
            "nodes": self.nodes,
            "seconds": round(self.seconds, 3),
            "session_options": self.session_options.to_dict(),
            "passed": self.passed,
            "error": self.error,
            "verification": None if self.verification is None else asdict(self.verification),
        }


@dataclass(frozen=True)
class ExportReport:
    """One export.

    Attributes:
        model: Qualified class name of the exported model.
        files: The files, the one asked for by name first.
        sites: Every attention site and what became of it; none where attention stays in standard operators
            (``portable``, ``tensorrt``).
        notes: What a reader should know (an axis that the model fixes, adapters that were folded).
        versions: Of the libraries that took part.
        card: The model card beside the files.
    """

    model: str
    files: tuple[FileReport, ...]
    sites: tuple[Site, ...]
    notes: tuple[str, ...]
    versions: dict[str, str]
    card: Path | None = None

    @property
    def passed(self) -> bool:
        """Whether every file passed."""
        return all(file.passed for file in self.files)

    @property
    def fused(self) -> int:
        """Number of attention sites that became one operator."""
        return sum(site.reason is None for site in self.sites)

    @property
    def unfused(self) -> dict[str, int]:
        """Why the others were left as they are, and how many for each reason."""
        return dict(Counter(site.reason for site in self.sites if site.reason is not None))

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON; the keys are stable."""
        return {
            "model": self.model,
            "passed": self.passed,
            "files": [file.to_dict() for file in self.files],
            "attention": {
                "sites": len(self.sites),
                "fused": self.fused,
                "unfused": [
                    {"module": site.module, "reason": site.reason}
                    for site in self.sites
                    if site.reason is not None
                ],
            },
            "notes": list(self.notes),
            "versions": self.versions,
            "card": None if self.card is None else str(self.card),
        }

    def __str__(self) -> str:
        lines = [f"{self.model}: {self.fused} of {len(self.sites)} attention sites fused"]
        lines += [f"  {_summary(file)}" for file in self.files]
        lines += [f"  {count} unfused: {reason}" for reason, count in self.unfused.items()]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def __rich__(self) -> RenderableType:
        """A table of the files; below it what was not fused, and what went wrong."""
        from rich.console import Group
        from rich.table import Table

        title = f"{self.model}: {self.fused} of {len(self.sites)} attention sites fused"
        table = Table(title=title, title_justify="left")
        columns = (
            "file",
            "target",
            "MB",
            "nodes",
            "fused operators",
            "parity error",
            "top-1",
            "ms, PyTorch",
            "verified",
        )
        for column in columns:
            table.add_column(column, justify="right" if column in {"MB", "nodes"} else "left")
        for file in self.files:
            table.add_row(*_row(file))
        lines = [f"[yellow]{n} unfused:[/] {reason}" for reason, n in self.unfused.items()]
        lines += [f"[yellow]note:[/] {note}" for note in self.notes]
        lines += [f"[red]{file.path.name}:[/] {p}" for file in self.files for p in file.problems]
        return Group(table, *lines)


def _row(file: FileReport) -> tuple[str, ...]:
    counts = file.verification.operators if file.verification else []
    fused = ", ".join(f"{c.op_type} {c.in_runtime}/{c.expected}" for c in counts)
    verdict = "[green]yes[/]" if file.passed else "[red]rejected[/]"
    error = "" if file.error is None else f"{file.error:.1e}"
    size = f"{file.bytes / 1e6:.1f}"
    verdict = verdict if file.verification else "[yellow]not asked for[/]"
    top1 = file.verification.top1 if file.verification else None
    agreed = "-" if top1 is None else f"{top1:.1%}"
    target = f"{file.target} {file.precision}"
    times = (
        "-" if file.latency is None else f"{file.latency.file_ms:.3g}, {file.latency.model_ms:.3g}"
    )
    numbers = (size, str(file.nodes), fused or "-", error, agreed, times)
    return (file.path.name, target, *numbers, verdict)


def _summary(file: FileReport) -> str:
    error = "not verified" if file.error is None else f"parity error {file.error:.1e}"
    top1 = None if file.verification is None else file.verification.top1
    error += "" if top1 is None else f", {top1:.1%} of the top-1 predictions agree"
    if file.latency is not None:
        error += f", {_times(file.latency)}"
    about = f"{file.target}, {file.precision}"
    line = f"{file.path} ({about}): {file.bytes / 1e6:.1f} MB, {file.nodes} nodes, {error}"
    return "; ".join([line, *file.problems])


def _times(found: Beside) -> str:
    at = ", ".join(f"{axis} {size}" for axis, size in found.sizes.items())
    where = f"{at}, {found.threads} threads" if at else f"{found.threads} threads"
    return f"{found.file_ms:.3g} ms where PyTorch takes {found.model_ms:.3g} ({where})"
