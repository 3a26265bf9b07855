"""What an export that is replaced would leave behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from exporters.errors import ExportError
from exporters.external import read_graph
from exporters.metadata import facts

PORTABLE_SUFFIX = ".portable"


def portable_twin(path: Path) -> Path:
    """Where the file of standard operators lies that belongs to a fused one."""
    return path.with_suffix(f"{PORTABLE_SUFFIX}{path.suffix}")


def leftovers(path: Path) -> list[Path]:
    """Files of an earlier export to ``path`` that a new one may not write: weights beside, the portable twin.

    Whose a file is, the files say: a model names its weights, and twins have one fingerprint.
    """
    twin = portable_twin(path)
    found = list(_weights(path))
    if twin.is_file() and _fingerprint(path) == _fingerprint(twin) is not None:
        found += [twin, *_weights(twin)]
    return found


def _weights(path: Path) -> Iterator[Path]:
    try:
        model = read_graph(path)
    except ExportError:  # not there, or no model: then nothing is known to be its own
        return
    entries = (entry for t in model.graph.initializer for entry in t.external_data)
    data = f"{path.name}.data"
    if any((entry.key, entry.value) == ("location", data) for entry in entries):
        yield path.with_name(data)


def _fingerprint(path: Path) -> object:
    try:
        return facts(path).get("fingerprint")
    except Exception:  # somebody else's metadata can be anything
        return None
