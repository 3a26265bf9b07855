"""The page quotes the figures as they were kept."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.export import as_markdown
from benchmarks.record import RESULTS

PAGE = Path(__file__).parents[2] / "docs" / "export.md"


def test_the_table_is_the_one_that_was_measured():
    kept = json.loads((RESULTS / "export.json").read_text(encoding="utf-8"))
    assert as_markdown(kept["figures"]) in PAGE.read_text(encoding="utf-8")
