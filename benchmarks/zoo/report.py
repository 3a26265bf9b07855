"""The table and the figures at the end of a sweep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from benchmarks.zoo.record import NONE, PARTIAL, PROVED, UNBUILT, UNREAD, WRONG, Record


def figures(records: Sequence[Record]) -> dict[str, Any]:
    """Counts, and every record."""
    return {"counts": counts(records), "models": [r.to_dict() for r in records]}


def counts(records: Sequence[Record]) -> dict[str, Any]:
    """How many models attend, were read in full and proved, mislabelled, missed."""
    status = Counter(r.status for r in records)
    asked = [r for r in records if r.status not in (UNBUILT, NONE)]
    return {
        "models": len(records),
        "built": len(records) - status[UNBUILT],
        "without_attention": status[NONE],
        "with_attention_or_unread": len(asked),
        "proved": status[PROVED],
        "proved_percent": round(100 * status[PROVED] / max(len(asked), 1), 2),
        "partial": status[PARTIAL],
        "unread": status[UNREAD],
        "unbuilt": status[UNBUILT],
        "models_with_a_wrong_label": status[WRONG],
        "sites_at_run_time": sum(r.run for r in records),
        "sites_read": sum(r.read for r in records),
        "sites_idle": sum(r.idle for r in records),
        "projections_disturbed": sum(r.claims for r in records),
        "projections_held": sum(r.held for r in records),
        "seconds": round(sum(sum(r.seconds.values()) for r in records)),
    }


def misses(records: Sequence[Record]) -> Table:
    """Every model that is not proved, with the cause."""
    table = Table("model", "status", "run", "read", "held", "cause", title="not proved")
    for r in records:
        if r.status not in (PROVED, NONE):
            held = f"{r.held}/{r.claims}"
            table.add_row(r.model, r.status, str(r.run), str(r.read), held, r.cause)
    return table


def summary(records: Sequence[Record]) -> Table:
    """The counts as a table."""
    table = Table("figure", "value")
    for name, value in counts(records).items():
        table.add_row(name.replace("_", " "), str(value))
    return table
