"""The picture of an anatomy: every weight is there, split as its rows are, and what is adapted shows."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import surgery
from surgery import Anatomy, Plan
from surgery.picture import picture, save_picture
from tests.surgery.browser import needs_browser, pixels


class Page(HTMLParser):
    """Collects the segments and the headings of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.segments: list[dict[str, str]] = []
        self.tags: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        if "title" in found:
            self.segments.append(found)

    @property
    def adapted(self) -> list[str]:
        return [s["title"] for s in self.segments if "cut" in s["class"].split()]


@pytest.fixture(scope="module")
def vit() -> tuple[nn.Module, Anatomy]:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3)
    return model, surgery.read(model)


@pytest.fixture(scope="module")
def plan(vit: tuple[nn.Module, Anatomy]) -> Plan:
    return surgery.plan(vit[0], "vit-attn-qv", anatomy=vit[1], rank=4, depth="last 1")


def test_every_projection_is_drawn_once_and_thirds_are_thirds(
    vit: tuple[nn.Module, Anatomy],
) -> None:
    page = Page(picture(vit[1]))
    assert len(page.segments) == len(vit[1].projections) == 2 * 6 + 1
    assert page.adapted == []
    query = next(s for s in page.segments if s["title"].startswith("attention.query"))
    assert query["title"].endswith("blocks.0.attn.qkv.weight, rows 0:192, 192 → 192")
    assert query["style"] == "flex: 0.3333"


def test_what_a_plan_adapts_is_marked_with_its_rank(
    vit: tuple[nn.Module, Anatomy], plan: Plan
) -> None:
    adapted = Page(picture(vit[1], plan)).adapted
    assert [title.split(":")[0] for title in adapted] == ["attention.query", "attention.value"]
    assert all("blocks.1." in title and "symlora, rank 4" in title for title in adapted)


def test_the_page_needs_nothing_else_and_is_written_whole(
    vit: tuple[nn.Module, Anatomy], plan: Plan, tmp_path: Path
) -> None:
    path = save_picture(tmp_path / "vit.html", vit[1], plan)
    assert path.read_text(encoding="utf-8") == picture(vit[1], plan)
    assert [file.name for file in tmp_path.iterdir()] == ["vit.html"]
    tags = set(Page(path.read_text(encoding="utf-8")).tags)
    assert not tags & {"script", "link", "img", "iframe"}


class Awkward(nn.Module):
    """A module name that would be markup."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("<b>", nn.Linear(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.get_submodule("<b>")(x)


def test_names_are_text() -> None:
    text = picture(surgery.read(Awkward(), torch.ones(1, 4)))
    assert "<b>.weight" not in text and "&lt;b&gt;.weight" in text
    assert "outside the blocks" in text


@pytest.mark.slow
@needs_browser
def test_a_browser_draws_what_is_adapted_in_its_colour(
    vit: tuple[nn.Module, Anatomy], plan: Plan, tmp_path: Path
) -> None:
    drawn = []
    for name, shown in (("plain", None), ("adapted", plan)):
        page = save_picture(tmp_path / f"{name}.html", vit[1], shown)
        drawn.append(int((pixels(page, tmp_path) == (0xCF, 0x45, 0x20)).all(1).sum()))
    assert drawn[0] == 0 and drawn[1] > 1000
