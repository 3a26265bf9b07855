"""The face imports what is asked for when it is asked for, and has all that it promises."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest

import surgery


@pytest.mark.parametrize("name", surgery.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(surgery, name).__name__.rpartition(".")[2] == name and name in dir(surgery)


def test_every_part_is_an_attribute_without_an_import_of_its_own() -> None:
    parts = sorted({part.name for part in pkgutil.iter_modules(surgery.__path__)} - {"cli"})
    code = f"import surgery\nassert all(getattr(surgery, name) for name in {parts})"
    assert "training" in parts
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="attribute operate"):
        surgery.operate  # noqa: B018
