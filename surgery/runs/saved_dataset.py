"""A Hugging Face dataset on disk, as ``save_to_disk`` writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from surgery.errors import RunError, told_by
from surgery.runs.classes import Classes
from surgery.runs.columns import check_column, pick
from surgery.runs.image_folder import TRAIN, VALIDATION
from surgery.runs.samples import Data, Samples, existing, hold_back
from surgery.runs.schema import DataSpec


def open_dataset(spec: DataSpec, seed: int) -> Data:
    """Open a saved ``Dataset`` or ``DatasetDict``, of images or of texts.

    Raises:
        RunError: If datasets is not installed, or the folder, a split, a column or a label is missing.
    """
    assert spec.dataset is not None
    splits = _load(existing(spec.dataset, "such dataset folder"))
    train = _split(splits, TRAIN, spec.dataset)
    wanted = (spec.validation,) if spec.validation else VALIDATION
    other = next((splits[name] for name in wanted if name in splits), None)
    if other is None and spec.validation:
        raise _no_split(spec.dataset, spec.validation, splits)
    column, kind = _items(spec, train)
    classes = None if spec.label is None else _classes(spec, train)
    first = _samples(train, column, spec, classes)
    if other is None:
        first, second = hold_back(first, spec.split, seed, classes.names if classes else ())
    else:
        second = _samples(other, column, spec, classes)
    return Data(kind, first, second, classes.names if classes else ())


def _load(folder: Path) -> dict[str, Any]:
    """The splits by name; a single dataset is ``train``."""
    try:
        import datasets
    except ImportError as error:
        raise RunError(
            "reading a dataset needs the package datasets",
            where=str(folder),
            remedy="pip install 'model-surgery[train]'",
        ) from error
    try:
        found = datasets.load_from_disk(str(folder))
    except Exception as error:  # a file that is missing or broken fails in many ways
        raise RunError(
            "the dataset cannot be read",
            where=str(folder),
            why=told_by(error),
            remedy="give the folder that dataset.save_to_disk(...) wrote",
        ) from error
    return dict(found) if isinstance(found, datasets.DatasetDict) else {"train": found}


def _split(splits: dict[str, Any], names: tuple[str, ...], where: str) -> Any:
    found = next((splits[name] for name in names if name in splits), None)
    if found is None:
        raise _no_split(where, names[0], splits)
    return found


def _no_split(where: str, name: str, splits: dict[str, Any]) -> RunError:
    return RunError(
        f"the dataset has no split {name!r}",
        where=where,
        why=f"it has {', '.join(splits)}",
        remedy="name one of these in data.validation; training takes 'train'",
    )


def _items(spec: DataSpec, dataset: Any) -> tuple[str, Any]:
    """The column that is learned from, and what it holds."""
    import datasets

    images = [n for n, f in dataset.features.items() if isinstance(f, datasets.Image)]
    if spec.image or images:
        column = spec.image or images[0]
        check_column(column, dataset.column_names, str(spec.dataset), "data.image")
        return column, "images"
    check_column(spec.text, dataset.column_names, str(spec.dataset), "data.text")
    return spec.text, "texts"


def _classes(spec: DataSpec, dataset: Any) -> Classes:
    assert spec.label is not None
    label = pick(spec.label, dataset.column_names, str(spec.dataset), "data.label")
    names = getattr(dataset.features[label], "names", None)
    where = f"{spec.dataset}, column {label!r}"
    if names is not None:
        return Classes(tuple(names), where, numbered=True)
    return Classes.of(dataset[label], where)


def _samples(dataset: Any, column: str, spec: DataSpec, classes: Classes | None) -> Samples:
    targets: tuple[int, ...] = ()
    if classes is not None and spec.label is not None:
        label = pick(spec.label, dataset.column_names, str(spec.dataset), "data.label")
        targets = tuple(classes.numbers(dataset[label]))
    return Samples(lambda i: dataset[i][column], targets, len(dataset))
