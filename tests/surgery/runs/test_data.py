"""Data are opened as they lie; what is missing or broken is said, with its place."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgery.errors import RunError
from surgery.runs.feed import Feed
from surgery.runs.samples import Data, Samples, hold_back, open_data
from surgery.runs.schema import DataSpec

from .conftest import images

ROWS = [{"text": f"text {i}", "label": ("cat", "dog")[i % 2]} for i in range(20)]


def opened(**data: Any) -> Data:
    return open_data(DataSpec(**data), seed=0)


def table(path: Path, rows: list[dict[str, Any]]) -> str:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        mark = "," if path.suffix == ".csv" else "\t"
        lines = [mark.join(rows[0]), *(mark.join(map(str, row.values())) for row in rows)]
        path.write_text("\n".join(lines))
    return str(path)


@given(
    targets=st.lists(st.integers(0, 3), min_size=2, max_size=60),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 9),
)
def test_a_split_takes_from_every_class_and_loses_nothing(
    targets: list[int], share: float, seed: int
) -> None:
    counts = Counter(targets)
    samples = Samples(lambda i: i, tuple(targets), len(targets))
    if min(counts.values()) < 2:
        with pytest.raises(RunError, match="too little to hold back"):
            hold_back(samples, share, seed)
        return
    train, held = hold_back(samples, share, seed)
    assert set(train.targets) == set(held.targets) == set(targets)
    both = [part[i] for part in (train, held) for i in range(len(part))]
    assert sorted(item for item, _ in both) == list(range(len(targets)))
    assert all(targets[item] == target for item, target in both)


def test_an_image_folder_is_split(colours: Path) -> None:
    data = opened(images=str(colours), split=0.25)
    assert data.labels == ("blue", "green", "red")
    assert (len(data.train), len(data.validation)) == (27, 9)
    image, target = data.validation[0]
    assert image.size == (40, 40) and target == 0


def test_train_and_val_folders_are_taken_as_they_are(tmp_path: Path) -> None:
    images(tmp_path / "train", 4)
    images(tmp_path / "val", 2)
    data = opened(images=str(tmp_path))
    assert (len(data.train), len(data.validation)) == (12, 6)
    (tmp_path / "val/violet").mkdir()
    (tmp_path / "val/red/0.png").rename(tmp_path / "val/violet/0.png")
    with pytest.raises(RunError, match="only one of them has violet"):
        opened(images=str(tmp_path))


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_a_table_is_read(tmp_path: Path, suffix: str) -> None:
    data = opened(table=table(tmp_path / f"t{suffix}", ROWS), split=0.2)
    assert data.labels == ("cat", "dog") and data.kind == "texts"
    assert (len(data.train), len(data.validation)) == (16, 4)
    text, target = data.train[0]
    assert text.startswith("text ") and target == int(text.split()[1]) % 2


def test_what_tools_leave_in_a_folder_is_no_class_and_a_test_set_is_left_alone(
    tmp_path: Path,
) -> None:
    for part, each in {"Train": 4, "VAL": 2, "test": 3}.items():
        images(tmp_path / part, each)
    images(tmp_path / "Train" / ".ipynb_checkpoints", 1)
    (tmp_path / "__MACOSX").mkdir()
    data = opened(images=str(tmp_path))
    assert data.labels == ("blue", "green", "red")
    assert (len(data.train), len(data.validation)) == (12, 6)
    shutil.rmtree(tmp_path / "VAL")
    data = opened(images=str(tmp_path), split=0.25)
    assert (len(data.train), len(data.validation)) == (9, 3)


def test_blanks_around_a_label_make_no_class(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": label} for label in ("pos", "pos ", " neg", "neg")]
    assert opened(table=table(tmp_path / "t.csv", rows), split=0.5).labels == ("neg", "pos")


def test_numbered_classes_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": i % 11} for i in range(33)]
    assert opened(table=table(tmp_path / "t.csv", rows)).labels == tuple(map(str, range(11)))


def test_texts_without_labels(tmp_path: Path) -> None:
    data = opened(table=table(tmp_path / "t.csv", ROWS), label=None)
    assert data.labels == () and data.train[0][1] is None


def saved(folder: Path, **columns: Any) -> str:
    dataset = datasets.Dataset.from_dict({"text": [row["text"] for row in ROWS], **columns})
    dataset.save_to_disk(str(folder))
    return str(folder)


def test_a_saved_dataset_is_opened(tmp_path: Path) -> None:
    labels = [i % 2 for i in range(20)]
    features = datasets.Features(
        text=datasets.Value("string"), labels=datasets.ClassLabel(names=["cat", "dog"])
    )
    dataset = datasets.Dataset.from_dict(
        {"text": [row["text"] for row in ROWS], "labels": labels}, features=features
    )
    parts = datasets.DatasetDict(train=dataset, test=dataset.select(range(6)))
    parts.save_to_disk(str(tmp_path / "d"))
    data = opened(dataset=str(tmp_path / "d"))
    assert data.labels == ("cat", "dog") and data.train[3] == ("text 3", 1)
    assert (len(data.train), len(data.validation)) == (
        18,
        2,
    )  # a test set chooses nothing by itself
    asked = opened(dataset=str(tmp_path / "d"), validation="test")
    assert (len(asked.train), len(asked.validation)) == (20, 6)
    with pytest.raises(RunError, match=r"no split 'val'(.|\n)*train, test"):
        opened(dataset=str(tmp_path / "d"), validation="val")


def test_a_saved_dataset_of_images(tmp_path: Path, colours: Path) -> None:
    files = sorted(map(str, colours.rglob("*.png")))
    dataset = datasets.Dataset.from_dict(
        {"picture": files, "label": [Path(file).parent.name for file in files]}
    ).cast_column("picture", datasets.Image())
    dataset.save_to_disk(str(tmp_path / "d"))
    data = opened(dataset=str(tmp_path / "d"))
    assert data.kind == "images" and data.labels == ("blue", "green", "red")
    assert data.train[0][0].size == (40, 40)


def broken_line(path: Path) -> dict[str, Any]:
    (path / "t.jsonl").write_text('{"text": "a", "label": "b"}\n{"text": \n')
    return {"table": str(path / "t.jsonl")}


def broken_image(path: Path) -> dict[str, Any]:
    images(path / "i", 2)
    (path / "i/red/0.png").write_bytes(b"no image")
    return {"images": str(path / "i")}


def outer(path: Path) -> dict[str, Any]:
    images(path / "outer" / "flowers", 1)
    (path / "outer" / ".ipynb_checkpoints").mkdir()
    return {"images": str(path / "outer")}


Make = Callable[[Path], dict[str, Any]]
MISTAKES: dict[str, tuple[Make, str]] = {
    "no folder": (lambda p: {"images": str(p / "nothing")}, "there is no such image folder"),
    "no classes": (lambda p: {"images": str(p)}, "put the images of each class into a folder"),
    "no file": (lambda p: {"table": "nothing.csv"}, "there is no such file"),
    "suffix": (lambda p: {"table": str(Path(__file__))}, "ending in .py is none that we read"),
    "column": (
        lambda p: {"table": table(p / "t.csv", ROWS), "text": "texd"},
        r"the columns are text, label(.|\n)*did you mean 'text'",
    ),
    "no label column": (
        lambda p: {"table": table(p / "t.csv", [{"text": "a"}] * 3)},
        r"there is no column 'label'(.|\n)*data.label",
    ),
    "empty label": (
        lambda p: {"table": table(p / "t.csv", [*ROWS, {"text": "a", "label": ""}])},
        r"a label is missing(.|\n)*row 21",
    ),
    "one class of images": (outer, r"of one class(.|\n)*outer/flowers"),
    "more cells": (
        lambda p: {"table": table(p / "t.csv", [*ROWS, {"text": "not good, but", "label": "b"}])},
        r"more cells than the header(.|\n)*quotes|row 21(.|\n)*more cells",
    ),
    "class of the validation": (
        lambda p: {
            "table": table(p / "t.csv", ROWS),
            "validation": table(p / "v.csv", [{"text": "a", "label": "odd"}]),
        },
        r"'odd' is no class(.|\n)*v.csv, row 1",
    ),
    "one sample": (
        lambda p: {"table": table(p / "t.csv", [*ROWS, {"text": "a", "label": "rare"}])},
        "class rare has one sample",
    ),
    "one class": (lambda p: {"table": table(p / "t.csv", ROWS[::2])}, "fewer than two classes"),
    "fractions": (
        lambda p: {"dataset": saved(p / "d", label=[0.5] * 20)},
        r"0.5 is no class(.|\n)*row 1",
    ),
    "null label": (
        lambda p: {"dataset": saved(p / "d", label=["a", None] * 10)},
        r"a label is missing(.|\n)*row 2",
    ),
    "no dataset": (lambda p: {"dataset": str(p)}, "save_to_disk"),
    "dataset column": (lambda p: {"dataset": saved(p / "d")}, "there is no column 'label'"),
    "json": (broken_line, r"t.jsonl:2"),
    "image": (broken_image, "an image cannot be read"),
}


def read_all(asked: dict[str, Any]) -> None:
    data = opened(**asked)
    for part in (data.train, data.validation):
        for number in range(len(part)):
            part[number]


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_said(tmp_path: Path, case: str) -> None:
    make, words = MISTAKES[case]
    asked = make(tmp_path)
    with pytest.raises(RunError, match=words) as caught:
        read_all(asked)
    assert caught.value.remedy


def test_what_is_random_hangs_on_seed_epoch_and_index_alone() -> None:
    import random

    import numpy as np
    import torch

    def draw(_: Any) -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    feed = Feed(Samples(lambda i: i, (0,) * 4, 4), draw, seed=3)
    before = torch.get_rng_state(), random.getstate()
    first = [feed[i] for i in (0, 1, 2)]
    assert [feed[i] for i in (2, 1, 0)] == first[::-1] and len(set(first)) == 3
    feed.set_epoch(1)
    assert feed[0] != first[0]
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()
