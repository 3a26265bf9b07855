"""Plain data as protobuf text, as Triton's ``config.pbtxt`` wants it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any


class Word(str):
    """An enum value: written without quotes."""


def render(message: Mapping[str, Any]) -> str:
    """A mapping is a message, a list a repeated field; what is None or empty is left out."""
    return "\n".join(_lines(message, "")) + "\n"


def entries(mapping: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A protobuf map: a repeated message of key and value."""
    return [{"key": key, "value": value} for key, value in mapping.items()]


def _lines(message: Mapping[str, Any], indent: str) -> Iterator[str]:
    for name, value in message.items():
        several = isinstance(value, list | tuple)
        for entry in (e for e in (value if several else (value,)) if isinstance(e, Mapping)):
            yield f"{indent}{name} {{"
            yield from _lines(entry, indent + "  ")
            yield f"{indent}}}"
        scalars = [e for e in (value if several else ()) if not isinstance(e, Mapping)]
        if scalars:
            yield f"{indent}{name}: [{', '.join(map(_scalar, scalars))}]"
        elif not several and value is not None and not isinstance(value, Mapping):
            yield f"{indent}{name}: {_scalar(value)}"


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and not isinstance(value, Word):
        return json.dumps(value, ensure_ascii=False)
    return str(value)
