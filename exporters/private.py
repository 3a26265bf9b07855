"""What would tell a stranger about the machine a file was made on: local paths, stack traces."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx

_TRACES = {"stack traces": 'File "', "exporter metadata": "pkg.torch"}
_ABSOLUTE = re.compile(r"(?<![\w./:-])(?:/[^\s\"'<>|/]+){2,}|\b[A-Za-z]:\\[^\s\"']+|(?<!\w)~/\S+")


def places() -> set[str]:
    """Folders of this machine that have no business in a file."""
    found = {os.getcwd(), str(Path.home()), sys.prefix, str(Path(onnx.__file__).parents[1])}
    return {place for place in found if len(place) > 1}


def traces(text: str) -> list[str]:
    """What a text holds of this machine's own folders and of the exporter's debugging, in words."""
    found = [what for what, trace in _TRACES.items() if trace in text]
    return found + [f"the local path {place}" for place in sorted(places()) if place in text]


def local_paths(text: str) -> Iterator[str]:
    """Absolute paths whose first folder exists here. ``/m/09x0r``, a class name, is none of them."""
    for found in _ABSOLUTE.findall(text):
        first = Path(found).parts[:2]
        if not found.startswith("/") or Path(*first).exists():
            yield found


def without_paths(value: Any) -> Any:
    """Plain data without the entries of mappings that are local paths: libraries note where they read."""
    if isinstance(value, Mapping):
        kept = {key: without_paths(entry) for key, entry in value.items()}
        return {key: entry for key, entry in kept.items() if not _is_path(entry)}
    return [without_paths(entry) for entry in value] if isinstance(value, list | tuple) else value


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and any(local_paths(value))
