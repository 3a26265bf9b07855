"""The page of a run holds what the run was, and needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from surgery.errors import RunError
from surgery.runs import charts, report
from surgery.runs.folder import RunFolder
from tests.surgery.browser import needs_browser, pixels

from .conftest import Trained

ACCENT, SECOND = (0xD1, 0x57, 0x3A), (0x4D, 0x7F, 0xB0)


class Page(HTMLParser):
    """Sections, references and SVGs of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sections: list[str] = []
        self.references: list[str] = []
        self.feed(text)
        self.pictures = [
            ElementTree.fromstring("<svg" + part.partition("</svg>")[0] + "</svg>")
            for part in text.split("<svg")[1:]
        ]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "section":
            self.sections.append(given["id"] or "")
        self.references += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href")]
        assert tag not in ("script", "link", "img")


@pytest.fixture
def folder(trained: Trained, tmp_path: Path) -> RunFolder:
    import shutil

    shutil.copytree(trained[0].output.folder, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def texts(picture: ElementTree.Element) -> Iterator[str]:
    for element in picture.iter("{http://www.w3.org/2000/svg}text"):
        yield "".join(element.itertext())


def test_a_page_needs_nothing_else(folder: RunFolder) -> None:
    page = Page(report.render(folder))
    assert page.sections == ["curves", "updates", "importance", "directions", "setup"]
    assert all(reference.startswith(("#", "data:")) for reference in page.references)
    assert len(page.pictures) == 4
    assert {"loss", "accuracy", "learning rate"} <= set(texts(page.pictures[0]))
    assert {"attention.query", "attention.value"} <= set(texts(page.pictures[1]))
    assert {"query 0", "value 1"} <= set(texts(page.pictures[3]))


def test_what_came_later_is_drawn_too(folder: RunFolder) -> None:
    row = {"name": "blocks.0", "role": "attention.query", "drift": 1e-8, "update_error": 1e-7}
    folder.write(folder.fold, {"projections": [row] * 3, "drift": 1e-8, "function_drift": 2e-7})
    times = {"name": "onnx cpu", "median_ms": 2.0, "low_ms": 1.5, "high_ms": 3.0}
    folder.write(folder.latency, {"rows": [times] * 2, "threads": 1, "calls": 8})
    file = {"path": "a/model.onnx", "target": "cpu", "precision": "fp32", "bytes": 1e6, "nodes": 9,
            "error": 3e-7, "passed": True, "verification": {"top1": 0.9375}}  # fmt: skip
    folder.write(folder.export, {"files": [file], "attention": {"sites": 2, "fused": 2}})
    text = report.render(folder)
    assert Page(text).sections[-4:] == ["fold", "latency", "export", "setup"]
    for words in ("2.0e-07", "onnx cpu", "model.onnx", "93.8 %", "3.0e-07"):
        assert words in text


def test_eigenvalues_of_symlora_are_drawn(folder: RunFolder) -> None:
    watched = json.loads(folder.layers.read_text())
    for layer in watched["layers"].values():
        layer |= {"scores": [], "switches": [], "eigenvalues": [[0.5, -0.25]]}
    folder.write(folder.layers, watched)
    page = Page(report.render(folder))
    assert page.sections == ["curves", "updates", "eigenvalues", "setup"]


@pytest.mark.slow
@needs_browser
def test_a_browser_draws_the_curves_and_the_timeline(folder: RunFolder, tmp_path: Path) -> None:
    drawn = []
    for name, text in (("bare", "<html></html>"), ("report", report.render(folder))):
        page = tmp_path / f"{name}.html"
        page.write_text(text, encoding="utf-8")
        shown = pixels(page, tmp_path, height=3000)
        drawn.append([int((shown == colour).all(1).sum()) for colour in (ACCENT, SECOND)])
    assert drawn[0] == [0, 0]
    bars, lines = drawn[1]
    assert bars > 2000 and lines > 50


def test_names_cannot_break_the_page(folder: RunFolder) -> None:
    folder.write(folder.labels, ["<script>alert(1)</script>"])
    assert "<script>" not in report.render(folder)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no finished run(.|\n)*--resume"):
        report.render(RunFolder(tmp_path))


def test_the_timeline_is_what_the_pairs_stood_on() -> None:
    layer: dict[str, Any] = {"rank": 2, "switches": [[3, [1]], [5, [1]], [8, [0]]]}
    assert charts.stays(layer, 10) == [(0, 0, 8), (1, 0, 3), (2, 3, 5), (3, 5, 10), (4, 8, 10)]


def test_the_watch_saw_the_switches_that_were_made(trained: Trained) -> None:
    folder = RunFolder(Path(trained[0].output.folder))
    watched = json.loads(folder.layers.read_text())
    for layer in watched["layers"].values():
        assert [step for step, _ in layer["switches"]] == [2, 3, 4, 6, 7]
        assert len(layer["update_norm"]) == len(layer["scores"]) == len(watched["steps"])
        assert layer["update_norm"][0] == 0 < layer["update_norm"][-1]
