"""Texts in a CSV, TSV or JSONL file."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from surgery.errors import RunError
from surgery.runs.classes import Classes
from surgery.runs.columns import check_column
from surgery.runs.samples import Data, Samples, existing, hold_back
from surgery.runs.schema import DataSpec

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_LINES = (".jsonl", ".ndjson")
_LONGEST_FIELD = 2**31 - 1

Row = dict[str, Any]


def open_table(spec: DataSpec, seed: int) -> Data:
    """Open a file of texts with labels, or of texts alone (``label: null``).

    Raises:
        RunError: If a file, a column or a label is missing, or a line is broken; it names the line.
    """
    assert spec.table is not None
    path = existing(spec.table, "such file")
    rows = _read(path, spec)
    classes = None if spec.label is None else Classes.of((r[spec.label] for r in rows), str(path))
    train = _samples(rows, spec, classes, str(path))
    if spec.validation:
        other = _read(existing(spec.validation, "such validation file"), spec)
        validation = _samples(other, spec, classes, spec.validation)
    else:
        train, validation = hold_back(train, spec.split, seed, classes.names if classes else ())
    return Data("texts", train, validation, classes.names if classes else ())


def _samples(rows: list[Row], spec: DataSpec, classes: Classes | None, where: str) -> Samples:
    texts = [str(row[spec.text] or "") for row in rows]
    labels = (row[spec.label] for row in rows) if spec.label else ()
    numbers = classes.numbers(labels, where) if classes else ()
    return Samples(texts.__getitem__, tuple(numbers), len(texts))


def _read(path: Path, spec: DataSpec) -> list[Row]:
    try:
        rows = list(_rows(path))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RunError(
            "the table cannot be read",
            where=str(path),
            why=f"{type(error).__name__}: {error}",
            remedy="give a UTF-8 file ending in .csv, .tsv or .jsonl",
        ) from error
    if not rows:
        raise RunError("the table has no rows", where=str(path), remedy="check the file")
    wanted = {"data.text": spec.text} | ({"data.label": spec.label} if spec.label else {})
    for key, name in wanted.items():
        check_column(name, tuple(rows[0]), str(path), key)
    rows = [_complete(row, wanted.values(), number, path) for number, row in enumerate(rows, 1)]
    return [_without_blanks(row, spec.label) for row in rows] if spec.label else rows


def _rows(path: Path) -> Iterator[Row]:
    if path.suffix.lower() in _LINES:
        yield from _json_rows(path)
        return
    delimiter = _DELIMITERS.get(path.suffix.lower())
    if delimiter is None:
        raise OSError(f"a file ending in {path.suffix or 'nothing'} is none that we read")
    csv.field_size_limit(_LONGEST_FIELD)
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from csv.DictReader(file, delimiter=delimiter, strict=True)


def _json_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise _broken(path, number, str(error)) from error
            if not isinstance(row, dict):
                raise _broken(path, number, f"it is a {type(row).__name__}, no object")
            yield row


def _complete(row: Row, wanted: Any, number: int, path: Path) -> Row:
    missing = next((name for name in wanted if row.get(name) is None), None)
    if missing is not None:
        raise _broken(path, number, f"it has no {missing!r}", "row")
    if None in row:  # where csv puts the cells beyond the header's
        why = 'it has more cells than the header: a text with a delimiter goes into "quotes"'
        raise _broken(path, number, why, "row")
    return row


def _without_blanks(row: Row, label: str) -> Row:
    """``pos `` is ``pos``."""
    value = row[label]
    return row | {label: value.strip()} if isinstance(value, str) else row


def _broken(path: Path, number: int, why: str, unit: str = "line") -> RunError:
    where = f"{path}:{number}" if unit == "line" else f"{path}, row {number}"
    return RunError(
        f"a {unit} of the table is broken", where=where, why=why, remedy=f"mend or drop that {unit}"
    )
