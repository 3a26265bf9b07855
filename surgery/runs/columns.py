"""Columns by name, with the near word where one is missing."""

from __future__ import annotations

from collections.abc import Sequence

from policies.errors import nearest
from surgery.errors import RunError


def check_column(name: str, columns: Sequence[str], where: str, key: str) -> None:
    """Refuse a column that is not there.

    Args:
        name: The column wanted.
        columns: Those that there are.
        where: File or folder.
        key: The key of the training file that names it.

    Raises:
        RunError: It says which columns there are.
    """
    if name in columns:
        return
    near = nearest(name, columns)
    raise RunError(
        f"there is no column {name!r}",
        where=where,
        why=f"the columns are {', '.join(columns)}",
        remedy=f"did you mean {near!r}? Set {key}" if near else f"set {key}",
    )


def pick(name: str, columns: Sequence[str], where: str, key: str) -> str:
    """``label``, or ``labels`` where that is what a dataset calls it.

    Raises:
        RunError: If neither is there.
    """
    if name not in columns and f"{name}s" in columns:
        return f"{name}s"
    check_column(name, columns, where, key)
    return name
