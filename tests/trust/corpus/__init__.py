"""What was fuzzed and is kept: every run reads it anew, and a long run adds what it finds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.trust.settings import MANY

FOLDER = Path(__file__).parent
POLICIES = sorted((FOLDER / "policies").glob("*.yaml"))
TRAININGS = sorted((FOLDER / "trainings").glob("*.yaml"))
NAMES: list[str] = json.loads((FOLDER / "names.json").read_text(encoding="utf-8"))


@contextmanager
def kept(kind: str, content: bytes) -> Iterator[None]:
    """In a long run, keep what makes the work inside fail: ``policies/found-1a2b3c.yaml``."""
    try:
        yield
    except Exception:
        if MANY:
            name = hashlib.sha256(content).hexdigest()[:12]
            (FOLDER / kind / f"found-{name}.yaml").write_bytes(content)
        raise
