"""Training files: YAML with errors that point at the line and suggest the near word."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

import policies
from policies import PolicyError, source
from policies.errors import nearest
from policies.source import Document, Place
from surgery.errors import RunError
from surgery.runs.schema import RunSpec


def load(path: Path) -> tuple[RunSpec, Document]:
    """Read and check a training file.

    Returns:
        What it says, and the document, which knows the line of each key.

    Raises:
        RunError: If the file is missing, no YAML, or does not fit the schema. Every finding names its
            line and the near word.
        PolicyError: If its policy is unknown or an override does not fit.
    """
    try:
        document = source.load_file(path, "training")
    except PolicyError as error:
        raise RunError(error.what, where=error.where, why=error.why, remedy=error.remedy) from error
    try:
        spec = RunSpec.model_validate(dict(document.data))
    except ValidationError as error:
        raise _misfit(document, error) from error
    _check_optimizer(spec, document)
    policy_of(spec, document)
    return spec, document


def policy_of(spec: RunSpec, document: Document | None = None) -> policies.Policy:
    """The policy with its overrides; an error gets its line.

    Raises:
        PolicyError: If it is unknown or an override does not fit.
    """
    try:
        return policies.get(spec.policy.name, **spec.policy.overrides)
    except PolicyError as error:
        if document is None:
            raise
        why = ": ".join(filter(None, (error.where, error.why)))
        where = document.at(("policy", "name"))
        raise PolicyError(error.what, where=where, why=why, remedy=error.remedy) from error


def write(spec: RunSpec) -> str:
    """The resolved file: every default spelt out, so that it means the same in the next version."""
    return yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def json_schema() -> dict[str, Any]:
    """JSON schema of a training file, for editors."""
    return RunSpec.model_json_schema()


def _check_optimizer(spec: RunSpec, document: Document) -> None:
    """timm knows the names; it is imported only here, when a file is read."""
    import timm.optim

    known = timm.optim.list_optimizers()
    name = spec.optimizer.name
    if name.lower() not in known:
        near = nearest(name, known)
        raise RunError(
            f"there is no optimizer {name!r}",
            where=document.at(("optimizer", "name")),
            why="timm.optim.list_optimizers() has them all",
            remedy=f"did you mean {near!r}?" if near else "adamw is a good start",
        )


def _misfit(document: Document, error: ValidationError) -> RunError:
    findings = error.errors()
    places = [document.at(finding["loc"]) for finding in findings]
    reasons = [_reason(finding) for finding in findings]
    if len(findings) > 1:
        reasons = [f"{place}: {reason}" for place, reason in zip(places, reasons, strict=True)]
    remedies = dict.fromkeys(r for finding in findings if (r := _remedy(finding)))
    return RunError(
        "a training file does not fit the schema",
        where=places[0] if len(findings) == 1 else document.where,
        why="; ".join(reasons),
        remedy="; ".join(remedies) or "surgery train --schema prints every key and its type",
    )


def _reason(finding: Mapping[str, Any]) -> str:
    """``optimizer.lrr: no such key; there are ...``."""
    place, kind = finding["loc"], finding["type"]
    label = ".".join(map(str, place))
    text = finding["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        text = f"no such key; there are {', '.join(_keys(place))}"
    elif kind == "missing":
        text = "is missing"
    elif kind == "string_pattern_mismatch":
        text = f"{finding['input']!r} is none of timm:NAME, hf:FOLDER-or-ID, module.path:factory"
    return f"{label}: {text}" if label else text


def _remedy(finding: Mapping[str, Any]) -> str | None:
    place, kind, word = finding["loc"], finding["type"], finding["input"]
    candidates: tuple[str, ...] = ()
    if kind == "extra_forbidden":
        word, candidates = place[-1], _keys(place)
    elif kind == "literal_error":
        candidates = _choices(place)
    near = nearest(word, candidates) if isinstance(word, str) else None
    return f"did you mean {near!r} instead of {word!r}?" if near else None


def _keys(place: Place) -> tuple[str, ...]:
    """The keys that there are around an unknown one."""
    owner = RunSpec if len(place) == 1 else _annotation(place[:-1])
    found = isinstance(owner, type) and issubclass(owner, BaseModel)
    return tuple(owner.model_fields) if found else ()


def _choices(place: Place) -> tuple[str, ...]:
    """The words that a key takes."""
    return tuple(map(str, get_args(_annotation(place))))


def _annotation(place: Place) -> Any:
    """The declared type at a place of the schema."""
    owner: Any = RunSpec
    for part in place:
        owner = owner.model_fields[str(part)].annotation
    return owner
