"""Policy files: YAML read safely, with errors that point at the line and suggest the near word."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from policies.errors import PolicyError, nearest
from policies.roles import Role
from policies.schema import TRAIN_WORDS, AdapterSpec, Policy, Selection

MAX_BYTES = 64 * 1024
_KEYS = (
    {*Policy.model_fields, *Selection.model_fields, *AdapterSpec.model_fields, "extends"}
    | {role.value for role in Role}
    | set(TRAIN_WORDS)
)


def load_file(path: Path) -> tuple[dict[str, Any], dict[tuple[str | int, ...], int]]:
    """Read a policy file.

    Args:
        path: A YAML file of at most 64 KiB, without anchors or aliases.

    Returns:
        The mapping, and the line number of each key in it, by its path.

    Raises:
        PolicyError: If the file is missing, too large, or no YAML mapping.
    """
    try:
        text = _read(path)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(
            "a policy file cannot be read", where=str(path), why=str(error),
            remedy="check the path, or run 'surgery policies list' for the names",
        ) from error  # fmt: skip
    except (yaml.YAMLError, RecursionError) as error:
        raise PolicyError(
            "a policy file is not YAML", where=str(path), why=_one_line(error),
            remedy="mend the line named above",
        ) from error  # fmt: skip
    if not isinstance(data, dict) or node is None:
        raise PolicyError(
            "a policy file holds no mapping", where=str(path),
            why=f"its top level is {type(data).__name__}", remedy="start with 'name: my-policy'",
        )  # fmt: skip
    return data, dict(_lines(node, ()))


def build(
    data: Mapping[str, Any],
    where: str = "the policy given",
    lines: Mapping[tuple[str | int, ...], int] | None = None,
) -> Policy:
    """Validate plain data into a policy.

    Raises:
        PolicyError: If it does not fit the schema; each finding names its line and the near word.
    """
    try:
        return Policy.model_validate(dict(data))
    except ValidationError as error:
        findings = [_finding(item, lines or {}) for item in error.errors()]
        raise PolicyError(
            "a policy does not fit the schema", where=where, why="; ".join(f for f, _ in findings),
            remedy="; ".join(r for _, r in findings if r) or "see docs/policies.md for the schema",
        ) from error  # fmt: skip


def _read(path: Path) -> str:
    if path.stat().st_size > MAX_BYTES:
        raise OSError(f"it has more than {MAX_BYTES} bytes")
    text = path.read_text(encoding="utf-8")
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise yaml.YAMLError(f"anchors and aliases are refused, found one{event.start_mark}")
    return text


def _lines(
    node: yaml.Node, path: tuple[str | int, ...]
) -> Iterator[tuple[tuple[str | int, ...], int]]:
    yield path, node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (*path, key.value), key.start_mark.line + 1
            yield from (
                (p, line)
                for p, line in _lines(value, (*path, key.value))
                if p != (*path, key.value)
            )
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _lines(value, (*path, index))


def _finding(
    item: Mapping[str, Any], lines: Mapping[tuple[str | int, ...], int]
) -> tuple[str, str | None]:
    place = tuple(item["loc"])
    line = next((lines[place[:n]] for n in range(len(place), 0, -1) if place[:n] in lines), None)
    label = ".".join(str(part) for part in place) or "the policy"
    prefix = f"line {line}, " if line else ""
    word = place[-1] if item["type"] == "extra_forbidden" else item.get("input")
    near = nearest(word, _KEYS - {word}) if isinstance(word, str) else None
    message = "unknown key" if item["type"] == "extra_forbidden" else item["msg"]
    return (
        f"{prefix}{label}: {message}",
        f"did you mean {near!r} instead of {word!r}?" if near else None,
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
