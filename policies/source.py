"""Policy files: YAML read safely, with errors that point at the line and suggest the near word."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from yaml.composer import ComposerError

from policies.errors import PolicyError, nearest
from policies.parts import Part
from policies.roles import Role
from policies.schema import AdapterSpec, Policy, Selection

MAX_BYTES = 64 * 1024
MAX_NESTING = 12
MAX_INTEGER = 2**63 - 1
_READABLE = {"policy": "check the path; policies.names() lists what can be asked for by name"}
_MAPPING = {"policy": "start with 'description: ...' and 'select:'"}
_ROLES = (*(role.value for role in Role), *(role.short for role in Role))

Place = tuple[str | int, ...]
"""Where in the data: ``("select", 0, "roles")``."""


@dataclass(frozen=True)
class Document:
    """Plain data that is to become a policy.

    Attributes:
        data: The mapping.
        where: What errors call it.
        lines: Line number of each key and list entry, from 1, if it came from a file.
        folder: What relative paths in it are relative to.
    """

    data: Mapping[str, Any]
    where: str = "the policy given"
    lines: Mapping[Place, int] = field(default_factory=dict)
    folder: Path = Path()

    def at(self, place: Place) -> str:
        """``file.yaml:3``, for the innermost part of ``place`` that has a line."""
        inwards = (place[:length] for length in range(len(place), 0, -1))
        line = next((self.lines[part] for part in inwards if part in self.lines), None)
        return f"{self.where}:{line}" if line else self.where


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses what can blow up or hide something: anchors, depth, endless numbers, keys given twice."""

    nesting = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or event.anchor:
            raise _refusal("anchors and aliases are refused", event.start_mark)
        if self.nesting >= MAX_NESTING:
            raise _refusal(f"nested more than {MAX_NESTING} deep", event.start_mark)
        self.nesting += 1
        node = super().compose_node(parent, index)
        self.nesting -= 1
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Base 16 has no limit of its own: such a number could not be printed in an error."""
        value: int = super().construct_yaml_int(node)
        if abs(value) > MAX_INTEGER:
            raise _refusal("a whole number of more than 64 bits", node.start_mark)
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def load_value(text: str) -> Any:
    """One YAML value, under the rules of a file.

    Raises:
        yaml.YAMLError: If it is none, or breaks them.
        ValueError: If it looks like a date and is none.
    """
    return _Loader(text).get_single_data()


def load_file(path: Path, noun: str = "policy") -> Document:
    """Read a policy file, or another of the house's YAML files.

    Args:
        path: A YAML file of at most 64 KiB, without anchors or aliases.
        noun: What errors call such a file.

    Raises:
        PolicyError: If the file is missing, too large, or no YAML mapping.
    """
    try:
        loader = _Loader(_read(path))
        node = loader.get_single_node()
        data = loader.construct_document(node) if node else None
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(
            f"a {noun} file cannot be read",
            where=str(path),
            why=str(error),
            remedy=_READABLE.get(noun, "check the path"),
        ) from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date with a 13th month
        raise _not_yaml(path, noun, error) from error
    if not isinstance(data, dict):
        raise PolicyError(
            f"a {noun} file holds no mapping",
            where=str(path),
            why=f"its top level is {type(data).__name__}",
            remedy=_MAPPING.get(noun, "start with a 'key: value' on the first line"),
        )
    return Document(data, str(path), dict(_lines(node, ())), path.parent)


def build(document: Document) -> Policy:
    """Validate plain data into a policy.

    Raises:
        PolicyError: If it does not fit the schema; each finding names its line and the near word.
    """
    try:
        return Policy.model_validate(dict(document.data))
    except ValidationError as error:
        findings = error.errors()
        reasons = [_reason(finding) for finding in findings]
        remedies = dict.fromkeys(r for finding in findings if (r := _remedy(finding)))
        places = [document.at(finding["loc"]) for finding in findings]
        several = len(findings) > 1 and bool(document.lines)
        if several:
            reasons = [f"{place}: {reason}" for place, reason in zip(places, reasons, strict=True)]
        raise PolicyError(
            "a policy does not fit the schema",
            where=document.where if several else places[0],
            why="\n       ".join(reasons),
            remedy="; ".join(remedies) or "policies.json_schema() has every key and its type",
        ) from error


def _read(path: Path) -> str:
    if path.stat().st_size > MAX_BYTES:
        raise OSError(f"it has more than {MAX_BYTES} bytes")
    return path.read_text(encoding="utf-8")


def _check_keys(node: yaml.MappingNode) -> None:
    seen: set[str] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.value in seen:
            raise _refusal("a key is given twice, or is no plain word", key.start_mark)
        seen.add(key.value)


def _refusal(problem: str, mark: yaml.Mark) -> ComposerError:
    return ComposerError(None, None, problem, mark)


def _not_yaml(path: Path, noun: str, error: Exception) -> PolicyError:
    mark = getattr(error, "problem_mark", None)
    return PolicyError(
        f"a {noun} file is not YAML that we read",
        where=f"{path}:{mark.line + 1}" if mark else str(path),
        why=getattr(error, "problem", None) or " ".join(str(error).split()),
        remedy="mend that line" if mark else "write plain UTF-8 text, and odd values in quotes",
    )


def _lines(node: yaml.Node | None, place: Place) -> Iterator[tuple[Place, int]]:
    """Every key and list entry with its line."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (*place, key.value), key.start_mark.line + 1
            yield from _lines(value, (*place, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*place, index), value.start_mark.line + 1
            yield from _lines(value, (*place, index))


def _reason(finding: Mapping[str, Any]) -> str:
    """``select[0].depht: no such key; there are ...``."""
    place, kind = finding["loc"], finding["type"]
    label = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    if kind == "extra_forbidden":
        text = f"no such key; there are {', '.join(_keys(place))}"
    elif kind == "enum":
        words = (
            f"part; the parts are {', '.join(Part)}"
            if place[-1] == "part"
            else f"role; the roles are {', '.join(Role)}"
        )
        text = f"{finding['input']!r} is no {words}"
    else:
        text = finding["msg"].removeprefix("Value error, ")
    return f"{label.removeprefix('.')}: {text}" if label else text


def _remedy(finding: Mapping[str, Any]) -> str | None:
    place, kind = finding["loc"], finding["type"]
    word, candidates = finding["input"], _ROLES
    if kind == "extra_forbidden" and len(place) == 1 and place[0] in AdapterSpec.model_fields:
        return f"write it into the adapter: 'adapter: {{{place[0]}: {word}}}'"
    if kind == "extra_forbidden":
        word, candidates = place[-1], _keys(place)
    elif kind != "enum":
        remedy: str | None = finding.get("ctx", {}).get("remedy")
        return remedy
    elif place[-1] == "part":
        candidates = tuple(part.value for part in Part)
    near = nearest(word, candidates) if isinstance(word, str) else None
    if near is None and candidates is _ROLES:
        return "a role says what a projection does, whatever it is called: attention.query, mlp.up, head, ..."
    return f"did you mean {near!r} instead of {word!r}?" if near else None


def _keys(place: Place) -> tuple[str, ...]:
    """The keys that there are around an unknown one."""
    if len(place) == 1:
        return (*Policy.model_fields, "extends")
    inner = AdapterSpec if "adapter" in place else Selection
    return tuple(inner.model_fields)
