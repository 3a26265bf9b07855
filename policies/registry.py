"""Finding policies: by name, path, mapping or as they are; ours, the project's, the user's, other packages'."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from policies import source
from policies.errors import PolicyError, nearest
from policies.schema import Policy

GROUP = "model_surgery.policies"
LIBRARY = Path(__file__).parent / "library"
_SUFFIXES = (".yaml", ".yml")
_SELECTION_KEYS = ("roles", "depth", "modules")
_registered: dict[str, Policy] = {}

PolicyLike = str | os.PathLike[str] | Mapping[str, Any] | Policy


def folders() -> tuple[Path, ...]:
    """Where policy files are looked for: the project first, then the user's home, then our library."""
    config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(".surgery/policies"), Path(config) / "model-surgery" / "policies", LIBRARY


def names() -> tuple[str, ...]:
    """Every policy that can be asked for by name."""
    files = (f.stem for folder in folders() for f in folder.glob("*.yaml"))
    return tuple(sorted({*_registered, *_from_packages(), *files}))


def register(policy: Policy) -> Policy:
    """Make a policy known by its name for the rest of the process."""
    _registered[policy.name] = policy
    return policy


def get(policy: PolicyLike, **overrides: Any) -> Policy:
    """Find a policy and lay the caller's overrides over it.

    Args:
        policy: A name, a path to a YAML file, a mapping, or a :class:`Policy`.
        **overrides: ``adapter="srlora"`` (keeps rank and alpha, drops the other kind's options),
            ``rank``, ``alpha``, ``train``, ``roles``, ``depth``, ``modules``; anything else is an
            option of the adapter. They hold for every selection and win over the policy.

    Raises:
        PolicyError: If there is no such policy (with the nearest name), or it is malformed.
    """
    found = _find(policy, seen=())
    given = {name: value for name, value in overrides.items() if value is not None}
    return _override(found, given) if given else found


def _find(policy: PolicyLike, seen: tuple[str, ...]) -> Policy:
    if isinstance(policy, Policy):
        return policy
    if isinstance(policy, Mapping):
        return _extend(policy, "the policy given", {}, seen)
    text = os.fspath(policy)
    if isinstance(policy, os.PathLike) or text.endswith(_SUFFIXES):
        return _from_file(Path(text), seen)
    if text in _registered:
        return _registered[text]
    for folder in folders():
        path = folder / f"{text}.yaml"
        if _is_name(text) and path.is_file():
            return _from_file(path, seen)
    if text in _from_packages():
        return _from_packages()[text]
    raise _unknown(text)


def _unknown(name: str) -> PolicyError:
    near = nearest(name, names())
    return PolicyError(
        f"there is no policy named {name!r}",
        why=f"the names are {', '.join(names())}",
        remedy=f"did you mean {near!r}?" if near else "pass a name, a path, a dict or a Policy",
    )


def _from_file(path: Path, seen: tuple[str, ...]) -> Policy:
    data, lines = source.load_file(path)
    return _extend({"name": path.stem, **data}, str(path), lines, seen)


def _extend(
    data: Mapping[str, Any],
    where: str,
    lines: Mapping[tuple[str | int, ...], int],
    seen: tuple[str, ...],
) -> Policy:
    """Lay a policy over the one it extends: keys replace keys, the adapter is merged."""
    parent = data.get("extends")
    own = {key: value for key, value in data.items() if key != "extends"}
    own.setdefault("name", "unnamed")
    if parent is None:
        return source.build(own, where, lines)
    if not isinstance(parent, str) or parent in seen:
        raise PolicyError(
            f"{parent!r} cannot be extended", where=where,
            why="extends takes one name or path, and no policy may extend itself",
            remedy="name another policy in extends",
        )  # fmt: skip
    base = _find(parent, (*seen, parent)).to_dict()
    adapter = own.get("adapter")
    if isinstance(adapter, Mapping) and "kind" not in adapter:
        own["adapter"] = {**base.get("adapter", {}), **adapter}
    return source.build({**base, **own}, where, lines)


def _override(policy: Policy, given: dict[str, Any]) -> Policy:
    kind = given.pop("adapter", None)
    train = given.pop("train", policy.train)
    where = {key: given.pop(key) for key in _SELECTION_KEYS if key in given}
    if isinstance(kind, Mapping):
        spec = dict(kind)
        kind = spec.pop("kind", None)
        given = {**spec, **given}
    data = policy.to_dict()
    data["train"] = train
    data["adapter"] = policy.adapter.override(kind, **given).model_dump()
    selections = []
    for selection in policy.select:
        plain = selection.model_dump(mode="json", exclude_defaults=True) | where
        if selection.adapter is not None:
            plain["adapter"] = selection.adapter.override(kind, **given).model_dump()
        selections.append(plain)
    data["select"] = selections
    return source.build(data, f"policy {policy.name!r} with overrides")


def _is_name(text: str) -> bool:
    """A name is no path: nothing outside the policy folders is read for it."""
    return bool(text) and all(c.isalnum() or c in "-_." for c in text) and ".." not in text


@functools.cache
def _from_packages() -> dict[str, Policy]:
    return {p.name: _find(p.load(), (p.name,)) for p in entry_points(group=GROUP)}
