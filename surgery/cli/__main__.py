"""``python -m surgery.cli`` is ``surgery``."""

from __future__ import annotations

from surgery.cli import app

app()
