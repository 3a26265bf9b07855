"""What adapters and surgery cost on a GPU, against PEFT, kept in ``results/speed_cuda.json``.

    python -m benchmarks.cuda [--sections training kernels ...] [--seconds 120] [--resume]

Needs ``pip install peft``. Every row is kept as soon as it is measured; after ``--seconds`` no new one
is begun. ``--device cpu --depth 1 --name rehearsal`` runs the same code without a GPU.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.clocks import Budget
from benchmarks.cuda import compiled, kernels, orders, surgery_costs, training
from benchmarks.record import keep, load

Rows = Iterator[dict[str, Any]]
SECTIONS: dict[str, Callable[[str, int], Rows]] = {
    "training": training.rows,
    "surgery": surgery_costs.rows,
    "orders": orders.rows,
    "compiled": compiled.rows,
    "kernels": kernels.rows,
}
ABOUT = {
    "clock": "CUDA events over steps in a row; surgery: wall time until the GPU is done",
    "precision": {
        "bf16 weights, autocast": "base in bfloat16, factors in float32, all under autocast(bfloat16)",
        "bf16 weights": "base in bfloat16, factors in float32, no autocast: the factors' products in float32",
        "fp32 weights, autocast": "base and factors in float32, all under autocast(bfloat16)",
        "fp32": "everything in float32, TF32 off",
    },
    "factors": "float32 on both sides, ours and PEFT's: both defaults for a 16-bit base",
}


def main() -> None:
    """Measure, keep after every row, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--sections", nargs="+", default=list(SECTIONS), choices=SECTIONS)
    parser.add_argument("--depth", type=int, default=12, help="blocks of each model")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no row after this time")
    parser.add_argument("--name", default="speed_cuda", help="of the results")
    parser.add_argument("--resume", action="store_true", help="keep the other sections")
    given = parser.parse_args()
    budget, started = Budget(given.seconds), time.monotonic()
    figures: dict[str, Any] = load(given.name) if given.resume else {}
    figures |= ABOUT | {"depth": given.depth}
    for section in given.sections:
        figures[section] = []
        torch.manual_seed(0)
        rows = SECTIONS[section](given.device, given.depth)
        while not budget.is_spent and (row := next(rows, None)) is not None:
            figures[section].append(row)
            known = [str(value) for value in row.values() if isinstance(value, str | int)]
            print(f"{time.monotonic() - started:5.0f} s  {section}", *known, flush=True)
            keep(given.name, figures)
    for section in given.sections:
        show(section, figures[section])


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """One line for each row; what is nested on lines of its own."""
    flat = [{key: _cell(value) for key, value in row.items()} for row in rows]
    table = Table(*dict.fromkeys(key for row in flat for key in row), title=title)
    for row in flat:
        table.add_row(*(row.get(str(column.header), "") for column in table.columns))
    Console(width=170).print(table)


def _cell(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    return "\n".join(f"{key}: {_brief(inner)}" for key, inner in value.items())


def _brief(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    return f"{value['overhead']:+.1%} {value['kept_mb']} MB, peak {value['peak_mb']}"


if __name__ == "__main__":
    main()
