"""The tasks: a real backbone, real data, and how long it is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.study import cells, fashion, texts
from benchmarks.study.backbones import DINOV2_56, DINOV2_112, MINILM, SMOLLM2, Backbone
from benchmarks.study.parts import Parts


@dataclass(frozen=True)
class Task:
    """One thing to learn.

    Attributes:
        title: As the tables say it.
        load: Makes the parts from a folder of downloaded packages.
        backbone: What is fine-tuned, under a fresh head.
        classes: Width of the head.
        steps: Optimizer steps of a run.
        batch: Examples a step.
        products: What the products of a run are rounded to, by autocast; None: as their operands are.
    """

    title: str
    load: Callable[[Path], Parts]
    backbone: Backbone
    classes: int
    steps: int
    batch: int = 32
    products: torch.dtype | None = None


TASKS: dict[str, Task] = {
    "fashion": Task("Fashion-MNIST, DINOv2-S/14, 112 px", fashion.load, DINOV2_112, 10, 500),
    "cells": Task("Solar cells, DINOv2-S/14, 112 px", cells.load, DINOV2_112, 2, 300),
    "r8": Task("Reuters R8, MiniLM-L6", texts.reuters, MINILM, 8, 300),
    "newsgroups": Task("20 newsgroups, MiniLM-L6", texts.newsgroups, MINILM, 20, 400),
    # Of a size for CPUs: a run takes one core a minute or two.
    "newsgroups-small": Task(
        "20 newsgroups, 3,000 texts of 32 tokens, MiniLM-L6",
        texts.newsgroups_small, MINILM, 20, 150, 16,
    ),
    "r8-small": Task(
        "Reuters R8, 1,000 texts of 32 tokens, MiniLM-L6", texts.reuters_small, MINILM, 8, 100, 16
    ),
    "r8-smollm2": Task(
        "Reuters R8, 1,000 texts of 32 tokens, SmolLM2-135M",
        texts.reuters_smollm2, SMOLLM2, 8, 100, 8, torch.bfloat16,
    ),
    "fashion-small": Task(
        "Fashion-MNIST, 1,000 images, DINOv2-S/14, 56 px", fashion.small, DINOV2_56, 10, 150, 16
    ),
    "cells-small": Task(
        "Solar cells, DINOv2-S/14, 112 px, 100 steps of 16",
        cells.load, DINOV2_112, 2, 100, 16, torch.bfloat16,
    ),
}  # fmt: skip
