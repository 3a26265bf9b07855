"""Every option of to_onnx is an option of surgery export, and arrives as what it means."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import exporters

from .conftest import SETTINGS, TIMM, Run

TO_ONNX = inspect.signature(exporters.to_onnx)
SAMPLES = np.zeros((2, 3, 32, 32), np.float32)


class Report:
    passed = True

    def to_dict(self) -> dict[str, Any]:
        return {}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What to_onnx was called with; nothing is exported."""
    found: dict[str, Any] = {}

    def record(*args: Any, **kwargs: Any) -> Report:
        found.update(TO_ONNX.bind(*args, **kwargs).arguments)
        return Report()

    monkeypatch.setattr(exporters, "to_onnx", record)
    return found


def test_every_option_arrives(run: Run, asked: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    (tmp_path / "prep.yaml").write_text("mean: [0.5, 0.5, 0.5]\n")
    np.save(tmp_path / "samples.npy", SAMPLES)
    run(
        "export", TIMM, *SETTINGS, "--out", "m.onnx", "--target", "tensorrt", "--precision", "fp16",
        "--adapters", "runtime", "--cache", "right", "--dynamic", "x=0:batch,2:height",
        "--profile", "batch=1,8,32", "--no-portable", "--no-verify", "--overwrite", "--samples", "samples.npy",
        "--labels", "labels.txt", "--preprocessing", "prep.yaml", "--accuracy", "top-1=0.93",
        "--metadata", "license=apache-2.0", "--input", "2x3x32x32", "--json",
    )  # fmt: skip
    assert torch.equal(asked.pop("samples"), torch.zeros(2, 3, 32, 32))
    assert asked.pop("example_inputs").args[0].shape == (2, 3, 32, 32)
    assert isinstance(asked.pop("model"), torch.nn.Module)
    assert asked == {
        "path": Path("m.onnx"), "target": "tensorrt", "precision": "fp16", "adapters": "runtime",
        "cache": "right", "dynamic": {"x": {0: "batch", 2: "height"}},
        "profile": {"batch": (1, 8, 32)}, "portable": False, "verify": False, "overwrite": True,
        "labels": ["cat", "dog"], "preprocessing": {"mean": [0.5, 0.5, 0.5]},
        "accuracy": {"top-1": 0.93}, "metadata": {"license": "apache-2.0"},
    }  # fmt: skip
    given_elsewhere = {"model", "samples", "example_inputs", "processor"}
    assert set(asked) | given_elsewhere == set(TO_ONNX.parameters)


def test_a_processor_is_read_from_its_folder(
    run: Run, asked: dict[str, Any], bert: Path, tmp_path: Path
) -> None:
    from transformers import ViTImageProcessor

    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "images")
    run("export", TIMM, *SETTINGS, "-o", "m.onnx", "--processor", "images", "--json")
    assert asked["processor"].size["height"] == 32
    assert asked["cache"] is False and asked["dynamic"] is True and asked["verify"] is True
    wrong = run("export", TIMM, *SETTINGS, "-o", "m.onnx", "--processor", "nowhere", code=1)
    assert "processor cannot be read: nowhere" in wrong.stderr


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (("--dynamic", "x=one:batch"), 2, "NAME=DIM:AXIS"),
        (("--dynamic", "x=0:batch", "--static"), 2, "--static"),
        (("--profile", "batch=1,8"), 2, "AXIS=MIN,OPT,MAX"),
        (("--accuracy", "0.93"), 2, "NAME=VALUE"),
        (("--samples", "nowhere.npy"), 1, "samples cannot be read"),
        (("--labels", "nowhere.txt"), 1, "labels cannot be read"),
        (("--preprocessing", "list.yaml"), 1, "no mapping"),
    ],
)
def test_words_that_make_no_sense_are_refused_before_a_model_is_built(
    run: Run, asked: dict[str, Any], tmp_path: Path, words: tuple[str, ...], code: int, reason: str
) -> None:
    (tmp_path / "list.yaml").write_text("- 1\n")
    result = run("export", "timm:no_such_model", "-o", "m.onnx", *words, code=code)
    assert reason in result.stderr
    assert not asked
