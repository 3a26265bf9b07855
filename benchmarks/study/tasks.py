"""The tasks: a real backbone, real data, and how long it is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from benchmarks.study import backbones, cells, fashion, texts
from benchmarks.study.parts import Parts


@dataclass(frozen=True)
class Task:
    """One thing to learn.

    Attributes:
        title: As the tables say it.
        load: Makes the parts from a folder of downloaded packages.
        build: The backbone under a fresh head, from the folder of prepared material.
        classes: Width of the head.
        modules: What PEFT is told to adapt; it is where query and value are.
        steps: Optimizer steps of a run.
        batch: Examples a step.
    """

    title: str
    load: Callable[[Path], Parts]
    build: Callable[[Path, int], nn.Module]
    classes: int
    modules: tuple[str, ...]
    steps: int
    batch: int = 32


TASKS: dict[str, Task] = {
    "fashion": Task(
        "Fashion-MNIST, DINOv2-S/14, 112 px", fashion.load, backbones.dinov2, 10, ("qkv",), 500
    ),
    "cells": Task(
        "Solar cells, DINOv2-S/14, 112 px", cells.load, backbones.dinov2, 2, ("qkv",), 300
    ),
    "r8": Task(
        "Reuters R8, MiniLM-L6", texts.reuters, backbones.minilm, 8, ("query", "value"), 300
    ),
    "newsgroups": Task(
        "20 newsgroups, MiniLM-L6", texts.newsgroups, backbones.minilm, 20, ("query", "value"), 400
    ),
    # Of a size for CPUs: a run takes one core a minute or two.
    "newsgroups-small": Task(
        "20 newsgroups, 3,000 texts of 32 tokens, MiniLM-L6",
        texts.newsgroups_small, backbones.minilm, 20, ("query", "value"), 150, 16,
    ),
    "r8-small": Task(
        "Reuters R8, 1,000 texts of 32 tokens, MiniLM-L6",
        texts.reuters_small, backbones.minilm, 8, ("query", "value"), 100, 16,
    ),
    "fashion-small": Task(
        "Fashion-MNIST, 1,000 images, DINOv2-S/14, 56 px",
        fashion.small, partial(backbones.dinov2, image_size=56), 10, ("qkv",), 150, 16,
    ),
    "cells-small": Task(
        "Solar cells, DINOv2-S/14, 112 px, small batches",
        cells.load, backbones.dinov2, 2, ("qkv",), 100, 16,
    ),
}  # fmt: skip
