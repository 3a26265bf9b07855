"""The documents site: its pages are all in the menu, its equations are set, and it builds strictly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def pages(entry: object) -> set[str]:
    if isinstance(entry, str):
        return {entry}
    found = entry.values() if isinstance(entry, dict) else entry
    return {page for part in found for page in pages(part)}  # type: ignore[attr-defined]


def test_every_page_is_in_the_menu() -> None:
    written = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert pages(CONFIG["nav"]) == written | {"benchmarks.md"}


@pytest.mark.slow
def test_it_builds_strictly_with_results_and_equations(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "-q",
        "-d",
        str(tmp_path / "site"),
    ]
    subprocess.run(command, cwd=ROOT, check=True)
    text = {p.stem: p.read_text(encoding="utf-8") for p in (tmp_path / "site").glob("*.html")}
    assert text["methods"].count("<math") >= 5 and "$$" not in text["methods"]
    assert "surgery.allocate" in text["policies"] and "<math" in text["reference"]
    assert ":math:" not in text["reference"] and ".. math::" not in text["reference"]
    for result in (ROOT / "benchmarks/results").glob("*.json"):
        assert f">{result.stem}<" in text["benchmarks"], result.stem
    assert (tmp_path / "site/files/policies/library/vit-attn-qv.yaml").is_file()
