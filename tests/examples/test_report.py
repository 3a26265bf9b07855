"""The report: every section with its numbers, one self-contained and well-formed page."""

from __future__ import annotations

import dataclasses
import io
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from examples import charts, report
from examples.results import (
    Accuracy,
    Check,
    Digit,
    File,
    Latencies,
    Latency,
    Organ,
    Results,
    Stage,
    Training,
)
from examples.terminal import closing_table

VOID = {"meta", "img", "br", "line", "path"}
SECTIONS = ["accuracy", "training", "surgery", "checks", "files", "latency", "cost", "setup"]


@pytest.fixture
def results() -> Results:
    digit = Digit(charts.ink(torch.full((28, 28), 9, dtype=torch.uint8)), 7, 1, 7)
    return Results(
        adapter="SymLoRA",
        policy="vit-attn-qv",
        rank=8,
        weights="Weights <as shipped>",
        images="Some images",
        seed=3,
        accuracy=Accuracy(917, 968, 1000, (digit,)),
        training=Training((2.0, 1.0, 0.5), (2,), 3, 20, 3e-3, 60, 73_920, 3_850, 21_600_001),
        organs=(Organ("query", (True, True)), Organ("key", (False, False))),
        checks=(Check("Fold", "drift 1e-7", True), Check("Parity", "off by 2", False)),
        files=(
            File("portable", "m.onnx", 88_123_456, 455, 2.5e-7, 1e-5, 1.0, {}, {}),
            File("fused", "m.fused.onnx", 87_000_000, 155, 1e-6, 1e-5, None, {"A": 2}, {"A": 1}),
        ),
        latency=Latencies(
            (Latency("torch eager", 40.0, 39.0, 44.0), Latency("fused file", 16.0, 15.0, 17.0)),
            *(1, 2, 40, ("torch.compile did not run",)),
        ),
        stages=(Stage("fine-tune", 100.0), Stage("export", 20.0)),
        peak_memory=3_100_000_000,
        environment={"torch": "2.99", "threads": "2"},
    )


class Page(HTMLParser):
    """Checks that tags nest and collects what a page refers to and says."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sections: list[str] = []
        self.links: list[str] = []
        self.words = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.links += [v for k in ("src", "href", "xlink:href") if (v := attributes.get(k))]
        if tag == "section":
            self.sections.append(attributes["id"] or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def test_every_section_shows_its_numbers(results: Results) -> None:
    page = Page(report.render(results))
    assert page.sections == SECTIONS
    words = " ".join(page.words.split())
    for expected in (
        *("96.8", "91.7", "83 misread", "32 misread", "0.36", "73,920", "1 of 2", "2.50"),
        *("vit-attn-qv", "88.1 MB", "455", "2.5 × 10⁻⁷", "1 of 2 A", "40.0 ms", "16.0 ms"),
        "torch.compile did not run",
        *("120 s", "3.1 GB", "2.99", "Weights <as shipped>", "drift 1e-7", "off by 2"),
    ):
        assert expected in words, expected


def test_the_page_needs_nothing_else(results: Results) -> None:
    text = report.render(results)
    assert all(link.startswith("data:") for link in Page(text).links)
    assert "url(" not in text
    assert "@import" not in text
    assert "<script" not in text


def test_a_failed_check_looks_failed(results: Results) -> None:
    good = dataclasses.replace(results, checks=results.checks[:1])
    assert 'class="failed"' in report.render(results)
    assert 'class="failed"' not in report.render(good)


def test_recomposition_is_drawn_only_where_it_happened(results: Results) -> None:
    training = dataclasses.replace(results.training, switches=())
    text = report.render(dataclasses.replace(results, training=training))
    assert report.render(results).count('class="mark"') == 1
    assert 'class="mark"' not in text


def test_write_is_whole_and_json_has_no_pictures(results: Results, tmp_path: Path) -> None:
    report.write(results, tmp_path / "new" / "report.html")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["report.html"]
    assert "data:image" not in json.dumps(results.to_dict())


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=40))
def test_curves_stay_inside_their_frame(values: list[float]) -> None:
    for path in str(charts.curve(values)).split(' d="M')[1:]:
        points = [tuple(map(float, p.split())) for p in path.split('"')[0].split("L")]
        assert len(points) == len(values)
        assert all(0 <= x <= charts.WIDTH and 0 <= y <= charts.HEIGHT for x, y in points)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30), st.sampled_from([1, 3, 9]))
def test_the_moving_average_keeps_lines_and_ends(values: list[float], window: int) -> None:
    line = [float(i) for i in range(len(values))]
    assert charts.moving_average(line, window) == pytest.approx(line)
    smooth = charts.moving_average(values, window)
    assert (smooth[0], smooth[-1]) == pytest.approx((values[0], values[-1]))


@given(st.integers(1, 5000), st.data())
def test_the_interval_holds_the_share(total: int, data: st.DataObject) -> None:
    correct = data.draw(st.integers(0, total))
    low, high = report.interval(correct, total)
    assert -1e-12 <= low <= correct / total + 1e-12
    assert correct / total - 1e-12 <= high <= 1 + 1e-12
    assert low < high


def test_the_closing_table_says_the_same(results: Results) -> None:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(closing_table(results))
    text = console.export_text()
    for expected in (
        *("91.7%", "96.8%", "0.36%", "77,770", "16.0 ms", "2.50×", "2.5 × 10⁻⁷"),
        *("1 of 2 A", "✓ Fold", "✗ Parity", "120 s", "3.1 GB"),
    ):
        assert expected in text, expected


def test_numbers_for_people() -> None:
    assert report.size(999) == "999 B"
    assert report.size(88_123_456) == "88.1 MB"
    assert report.compact(3.14e-7) == "3.1 × 10⁻⁷"
    assert report.compact(0) == "0"
