"""Which adapters there are. A new one is a file and a registration, here or by an entry point."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, TypeVar

from policies.errors import nearest, told_by
from surgery.adapters.base import Adapter
from surgery.errors import PolicyError

GROUP = "model_surgery.adapters"
_POLICY_WORDS = ("roles", "part", "depth", "modules", "train", "budget")
_RESERVED = frozenset({"self", "in_features", "out_features", "device", "dtype"})
_KINDS: dict[str, type[Adapter]] = {}

AdapterClass = TypeVar("AdapterClass", bound=type[Adapter])


def register(kind: str) -> Callable[[AdapterClass], AdapterClass]:
    """Class decorator: make an adapter known to policies under ``kind``."""

    def add(cls: AdapterClass) -> AdapterClass:
        cls.kind = kind
        _KINDS[kind] = cls
        return cls

    return add


def names() -> tuple[str, ...]:
    """Every kind of adapter, ours and those of installed packages."""
    _load_entry_points()
    return tuple(sorted(_KINDS))


def get(kind: str) -> type[Adapter]:
    """Return the adapter class of ``kind``.

    Raises:
        PolicyError: If there is none; it names the nearest kind.
    """
    if kind not in _KINDS:
        _load_entry_points()
    if kind not in _KINDS:
        near = nearest(kind, _KINDS)
        raise PolicyError(
            f"unknown adapter {kind!r}",
            why=f"the kinds are {', '.join(names())}",
            remedy=f"did you mean {near!r}?" if near else "choose one of these kinds",
        )
    return _KINDS[kind]


def options_of(kind: str) -> tuple[str, ...]:
    """The hyper-parameters that adapters of ``kind`` take.

    They are those of its class and, as long as it hands others on (``**options``), of what it extends.
    """
    return _options_of(get(kind))


@functools.cache
def _options_of(kind: type[Adapter]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for cls in kind.__mro__:
        if "__init__" not in vars(cls):
            continue
        parameters = inspect.signature(cls).parameters.values()
        named = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
        found |= dict.fromkeys(name for name in named if name not in _RESERVED)
        if len(named) == len(parameters):
            break
    return tuple(found)


def check_options(kind: str, options: Mapping[str, Any]) -> None:
    """Check that every option is one that the adapter takes.

    Raises:
        PolicyError: If an option is unknown; it names the nearest one.
    """
    known = options_of(kind)
    for option in options:
        if option not in known:
            near = nearest(option, (*known, *_POLICY_WORDS))
            raise PolicyError(
                f"the adapter {kind!r} has no option {option!r}",
                why=f"its options are {', '.join(known)}",
                remedy=f"did you mean {near!r}?" if near else "remove it from the policy",
            )


@functools.cache
def _load_entry_points() -> None:
    for point in entry_points(group=GROUP):
        if point.name not in _KINDS:
            try:
                register(point.name)(point.load())
            except Exception as error:  # somebody else's package can fail in any way
                raise PolicyError(
                    f"the adapter {point.name!r} of another package cannot be loaded",
                    where=point.value,
                    why=told_by(error),
                    remedy="repair or remove the package that offers it",
                ) from error
