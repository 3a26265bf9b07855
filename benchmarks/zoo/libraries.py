"""The two libraries by name."""

from __future__ import annotations

from benchmarks.zoo.examine import Zoo
from benchmarks.zoo.timm_zoo import Timm
from benchmarks.zoo.transformers_zoo import Transformers

LIBRARIES: dict[str, type[Zoo]] = {"timm": Timm, "transformers": Transformers}


def library(name: str) -> Zoo:
    """``timm`` or ``transformers``."""
    return LIBRARIES[name]()
