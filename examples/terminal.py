"""The closing table of the demo."""

from __future__ import annotations

from rich.table import Table

from examples.report import compact, size
from examples.results import Results


def closing_table(results: Results) -> Table:
    """The report's headline numbers for a terminal."""
    table = Table(title=f"{results.adapter} on DINOv2-S/14", show_header=False, title_style="bold")
    table.add_column(style="dim")
    table.add_column()
    for rows in (_learning(results), _files(results), _latencies(results), _cost(results)):
        for name, value in rows:
            table.add_row(name, value)
        table.add_section()
    for check in results.checks:
        mark = "[green]✓[/green]" if check.passed else "[bold red]✗[/bold red]"
        table.add_row(f"{mark} {check.name}", check.evidence)
    return table


Rows = list[tuple[str, str]]


def _learning(results: Results) -> Rows:
    accuracy, training = results.accuracy, results.training
    trained, total = training.adapter_weights + training.head_weights, training.total_weights
    before, after = accuracy.frozen / accuracy.total, accuracy.adapted / accuracy.total
    return [
        ("trained weights", f"{trained:,} of {total:,} ({trained / total:.2%})"),
        ("accuracy, frozen + linear head", f"{before:.1%}"),
        ("accuracy, adapted", f"[bold]{after:.1%}[/bold] of {accuracy.total:,} test images"),
        ("loss, first and last step", f"{training.losses[0]:.2f} → {training.losses[-1]:.3f}"),
    ]


def _files(results: Results) -> Rows:
    rows = []
    for file in results.files:
        fused = ", ".join(f"{file.found.get(k, 0)} of {n} {k}" for k, n in file.expected.items())
        parts = (size(file.size), f"{file.nodes} nodes", f"error {compact(file.parity)}", fused)
        rows.append((f"{file.name} file", ", ".join(filter(None, parts))))
    return rows


def _latencies(results: Results) -> Rows:
    latency = results.latency
    return [
        (r.name, f"{r.median:.1f} ms ({r.low:.1f} to {r.high:.1f}), {latency.speedup(r):.2f}×")
        for r in latency.rows
    ]


def _cost(results: Results) -> Rows:
    return [
        ("time in all", f"{sum(stage.seconds for stage in results.stages):.0f} s"),
        ("peak memory", size(results.peak_memory)),
    ]
