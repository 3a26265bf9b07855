"""Finding policies: by name, path, mapping or as they are; ours, the project's, the user's, other packages'."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from policies import source
from policies.errors import PolicyError, nearest
from policies.schema import AdapterSpec, Policy, lay
from policies.source import Document

GROUP = "model_surgery.policies"
LIBRARY = Path(__file__).parent / "library"
_SUFFIXES = (".yaml", ".yml")
_SELECTION_KEYS = ("roles", "part", "depth", "modules")
_registered: dict[str, Policy] = {}

PolicyLike = str | os.PathLike[str] | Mapping[str, Any] | Policy


def folders() -> tuple[Path, ...]:
    """Where policy files are looked for: the project first, then the user's home, then our library."""
    config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(".surgery/policies"), Path(config) / "model-surgery" / "policies", LIBRARY


def names() -> tuple[str, ...]:
    """Every policy that can be asked for by name."""
    return tuple(sorted(_known()))


def register(policy: Policy) -> Policy:
    """Make a policy known by its name for the rest of the process."""
    _registered[policy.name] = policy
    return policy


def get(policy: PolicyLike, **overrides: Any) -> Policy:
    """Find a policy and lay the caller's overrides over it.

    Args:
        policy: A name, a path to a YAML file, a mapping, or a :class:`Policy`.
        **overrides: ``adapter="srlora"`` (keeps rank and alpha, drops the other kind's options),
            ``rank`` (a number, or numbers by depth), ``budget``, ``alpha``, ``train``, ``roles``,
            ``part``, ``depth``, ``modules``; anything else is an option of the adapter. They hold
            for every selection and win over the policy: a rank over its budget and a budget over
            its ranks. None is no override.

    Raises:
        PolicyError: If there is no such policy (with the nearest name), it is malformed, or an override
            would have nothing to act on.
    """
    found = _find(policy, seen=())
    given = {name: value for name, value in overrides.items() if value is not None}
    return _override(found, given) if given else found


def _known() -> dict[str, Policy | Path | EntryPoint]:
    """What each name stands for; later sources win: packages, library, home, project, this process."""
    known: dict[str, Policy | Path | EntryPoint] = {p.name: p for p in entry_points(group=GROUP)}
    for folder in reversed(folders()):
        known |= {file.stem: file for file in folder.glob("*.yaml")}
    return known | _registered


def _find(policy: PolicyLike, seen: tuple[str, ...]) -> Policy:
    if isinstance(policy, Policy):
        return policy
    if isinstance(policy, Mapping):
        return _extend(Document(policy), seen)
    if not isinstance(policy, str | os.PathLike):
        raise PolicyError(
            f"a {type(policy).__name__} is no policy",
            remedy="pass a name, a path, a dict or a Policy",
        )
    text = os.fspath(policy)
    if isinstance(policy, os.PathLike) or text.endswith(_SUFFIXES):
        return _from_file(Path(text), seen)
    known = _known()
    if text not in known:
        raise _unknown(text, known)
    entry = known[text]
    if isinstance(entry, EntryPoint):
        return _from_package(entry, seen)
    return _from_file(entry, seen) if isinstance(entry, Path) else entry


def _unknown(name: str, known: Mapping[str, object]) -> PolicyError:
    near = nearest(name, known)
    return PolicyError(
        f"there is no policy named {name!r}",
        why=f"the names are {', '.join(sorted(known))}",
        remedy=f"did you mean {near!r}?" if near else "pass a name, a path, a dict or a Policy",
    )


def _from_file(path: Path, seen: tuple[str, ...]) -> Policy:
    document = source.load_file(path)
    return _extend(replace(document, data={"name": path.stem, **document.data}), seen)


def _from_package(entry: EntryPoint, seen: tuple[str, ...]) -> Policy:
    """What another package offers: a Policy, a mapping or a path."""
    try:
        offered = entry.load()
    except Exception as error:
        raise PolicyError(
            f"the policy {entry.name!r} cannot be loaded",
            where=f"{entry.group}: {entry.value}",
            why=f"{type(error).__name__}: {error}",
            remedy="update or remove the package that offers it",
        ) from error
    return _find(offered, (*seen, entry.name))


def _extend(document: Document, seen: tuple[str, ...]) -> Policy:
    """Lay a policy over the one it extends: keys replace keys, the adapter is merged."""
    own = dict(document.data)
    parent = own.pop("extends", None)
    if parent is None:
        return source.build(replace(document, data={"name": "unnamed", **own}))
    named = isinstance(parent, str) and "\0" not in parent
    if named and parent.endswith(_SUFFIXES):
        parent = str((document.folder / parent).resolve())
    if not named or parent in seen:
        shown = repr(parent) if isinstance(parent, str) else f"a {type(parent).__name__}"
        raise PolicyError(
            f"{shown} cannot be extended",
            where=document.at(("extends",)),
            why="extends takes one name or path, and no policy may extend itself",
            remedy="name another policy in extends",
        )
    base = _find(parent, (*seen, parent)).to_dict()
    if "adapter" in own:
        own["adapter"] = lay(own["adapter"], over=base.get("adapter", {}))
    return source.build(replace(document, data={**base, "name": "unnamed", **own}))


def _override(policy: Policy, given: dict[str, Any]) -> Policy:
    where = f"policy {policy.name!r} with {', '.join(given)} overridden"
    data = policy.to_dict() | {key: given.pop(key) for key in ("train",) if key in given}
    if given and not policy.select:
        raise PolicyError(
            f"policy {policy.name!r} puts no adapter anywhere, so {', '.join(given)} would change nothing",
            remedy="override a policy that selects projections, or leave these out",
        )
    chosen = {key: given.pop(key) for key in _SELECTION_KEYS if key in given}
    replaced = _sizes(given, data, chosen)
    change = _adapter_change(given)
    data["adapter"] = lay(change, over=policy.adapter)
    data["select"] = [
        selection.model_dump(mode="json", exclude_none=True, exclude=replaced)
        | chosen
        | ({"adapter": lay(change, over=selection.adapter)} if selection.adapter else {})
        for selection in policy.select
    ]
    return source.build(Document(data, where))


def _sizes(given: dict[str, Any], data: dict[str, Any], chosen: dict[str, Any]) -> set[str]:
    """Settle rank against budget; the keys of selections that the override puts an end to."""
    sizes = given.keys() & {"rank", "budget"}
    if len(sizes) == 2:
        raise PolicyError(
            "a rank and a budget were given",
            why="a budget sets the rank",
            remedy="leave one of them out",
        )
    if sizes:
        data.pop("budget", None)
    if "budget" in sizes:
        data["budget"] = given.pop("budget")
    if isinstance(given.get("rank"), Mapping):
        chosen["rank"] = given.pop("rank")
    return {"rank"} if sizes else set()


def _adapter_change(given: Mapping[str, Any]) -> Any:
    """``adapter=`` as a kind, mapping or AdapterSpec, together with the overrides of its values."""
    spec = given.get("adapter", {})
    whole = spec.model_dump() if isinstance(spec, AdapterSpec) else spec
    change = {"kind": whole} if isinstance(whole, str) else whole
    values = {name: value for name, value in given.items() if name != "adapter"}
    return {**change, **values} if isinstance(change, Mapping) else change
