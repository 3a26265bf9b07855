"""What to_onnx takes, told before any work: what is wrong with an option, and an example of it."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch

from exporters.errors import ExportError
from exporters.options import check_options

USUAL: dict[str, Any] = {
    "target": "cpu",
    "precision": "fp32",
    "adapters": "fold",
    "cache": False,
    "dynamic": True,
    "profile": None,
    "portable": True,
    "overwrite": False,
    "verify": True,
    "labels": None,
    "accuracy": None,
    "metadata": None,
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("target", "gpu"),
        ("target", ["cpu"]),
        ("precision", None),
        ("adapters", "none"),
        ("cache", "left"),
        ("dynamic", "batch"),
        ("dynamic", 1),
        ("dynamic", {"x": ["batch"]}),
        ("dynamic", {"x": {"0": "batch"}}),
        ("dynamic", {"x": {True: "batch"}}),
        ("dynamic", {"x": {0: 5}}),
        ("dynamic", {"x": "batch"}),
        ("profile", "batch"),
        ("profile", {"batch": 5}),
        ("overwrite", "no"),
        ("verify", 1),
        ("labels", "abc"),
        ("labels", 5),
        ("labels", [1, 2, 3]),
        ("accuracy", 0.9),
        ("accuracy", {"top-1": "high"}),
        ("accuracy", {"top-1": None}),
        ("accuracy", {"top-1": torch.ones(2)}),
        ("metadata", {1: 2}),
        ("metadata", "mit"),
    ],
)
def test_what_an_option_cannot_be_is_refused_with_an_example(name: str, value: Any) -> None:
    with pytest.raises(ExportError) as caught:
        check_options(**{**USUAL, name: value})
    error = caught.value
    assert error.where == name and error.why
    assert error.what.startswith(f"to_onnx does not take {name}=")
    assert str(error.remedy).startswith(f"pass {name}=")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cache", "right"),
        ("dynamic", {"x": {0: "batch"}, "y": {}}),
        ("dynamic", MappingProxyType({"x": MappingProxyType({0: "batch"})})),
        ("profile", {"batch": [1, 8, 32]}),
        ("labels", ("cat", "dog")),
        ("accuracy", {"a": 1, "b": np.float32(0.5), "c": torch.tensor(0.5)}),
        ("metadata", {"license": "mit", "data": {"rows": [1, 2]}}),
    ],
)
def test_what_it_can_be_passes(name: str, value: Any) -> None:
    check_options(**{**USUAL, name: value})
