"""Keep what coverage.py counted: lines and branches of each floor. ``make coverage`` calls it.

python -m benchmarks.coverage .coverage.json
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.record import keep


def main(report: Path) -> None:
    """Sum up by floor, print, keep."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for name, file in json.loads(report.read_text(encoding="utf-8"))["files"].items():
        for floor in (Path(name).parts[0], "all"):
            counts[floor] += Counter(
                {
                    "lines": file["summary"]["num_statements"],
                    "lines run": file["summary"]["covered_lines"],
                    "branches": file["summary"]["num_branches"],
                    "branches run": file["summary"]["covered_branches"],
                }
            )
    table = Table("floor", "lines", "branches")
    for floor, count in sorted(counts.items()):
        table.add_row(floor, share(count, "lines"), share(count, "branches"))
    Console().print(table)
    keep("coverage", {floor: dict(count) for floor, count in sorted(counts.items())})


def share(count: Counter[str], what: str) -> str:
    """``97.1% of 3120``."""
    total = count[what]
    return f"{100 * count[f'{what} run'] / max(1, total):.1f}% of {total}"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
