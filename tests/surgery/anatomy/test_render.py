"""How a reading is printed."""

from __future__ import annotations

from surgery.anatomy.render import runs


def test_runs_are_shown_as_slices() -> None:
    assert runs(((0, 8, 1), (1, 48, 3))) == "0:8, 1:48:3"
    assert runs(((0, 1, 1),) * 5) == "0:1, 0:1, 0:1, … 2 more"
