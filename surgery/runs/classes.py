"""Class names, and the number of each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from surgery.errors import RunError


@dataclass(frozen=True)
class Classes:
    """The classes of a label column.

    Attributes:
        names: In the order of their numbers.
        where: File and column, for errors.
        numbered: Whether the column holds numbers of ``names`` instead of the names.
    """

    names: tuple[str, ...]
    where: str
    numbered: bool = False

    @classmethod
    def of(cls, values: Iterable[Any], where: str) -> Classes:
        """Those that occur, numbers in their own order.

        Raises:
            RunError: If a label is missing or a fraction, or there are fewer than two classes.
        """
        found = {_checked(value, row, where) for row, value in enumerate(values, 1)}
        if len(found) < 2:
            raise RunError(
                "there are fewer than two classes",
                where=where,
                why=f"the labels are {', '.join(map(str, found)) or 'none'}",
                remedy="name the right column in data.label",
            )
        numbers = all(isinstance(value, int) or _is_whole(value) for value in found)
        return cls(tuple(map(str, sorted(found, key=int if numbers else str))), where)

    def numbers(self, values: Iterable[Any], where: str | None = None) -> list[int]:
        """The class number of each label.

        Args:
            values: The labels.
            where: File of these, for errors; None if it is that of the classes.

        Raises:
            RunError: If one is missing, or no class of the training data.
        """
        index = {name: number for number, name in enumerate(self.names)}
        where = where or self.where
        return [self._number(value, row, index, where) for row, value in enumerate(values, 1)]

    def _number(self, value: Any, row: int, index: dict[str, int], where: str) -> int:
        checked = _checked(value, row, where)
        if self.numbered:
            if isinstance(checked, int) and 0 <= checked < len(self.names):
                return checked
        elif str(checked) in index:
            return index[str(checked)]
        raise RunError(
            f"{value!r} is no class of the training data",
            where=f"{where}, row {row}",
            why=f"the classes are {', '.join(self.names[:10])}",
            remedy="train on samples of every class",
        )


def _is_whole(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip("-").isdecimal()


def _checked(value: Any, row: int, where: str) -> Any:
    if isinstance(value, int | str) and value != "":
        return value
    missing = value is None or value == ""
    raise RunError(
        "a label is missing" if missing else f"{value!r} is no class",
        where=f"{where}, row {row}",
        why="it is empty" if missing else f"it is of type {type(value).__name__}",
        remedy="fill it in or leave the row out; classes are words or whole numbers",
    )
