"""``surgery convert`` there and back, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort
import peft
import pytest
import torch
from torch import nn

import surgery

from .conftest import SETTINGS, TIMM, Run, base

IMAGE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IMAGE)


def test_to_peft_and_back(run: Run, adapter: tuple[Path, nn.Module], tmp_path: Path) -> None:
    file, model = adapter
    common = ("--model", TIMM, *SETTINGS)
    plain = run("convert", file, "--to", "peft", *common, "--out", "lora", "--json")
    assert plain["to"] == "peft" and plain["adapters"] > 0
    expected = logits(model)
    loaded = peft.PeftModel.from_pretrained(base(), tmp_path / "lora")
    torch.testing.assert_close(logits(loaded), expected, atol=1e-5, rtol=1e-4)
    run("convert", "lora", "--to", "safetensors", *common, "--out", "back.safetensors")
    again = surgery.load(base(), tmp_path / "back.safetensors")
    torch.testing.assert_close(logits(again), expected, atol=1e-5, rtol=1e-4)


def test_to_an_onnx_adapter(run: Run, adapter: tuple[Path, nn.Module], tmp_path: Path) -> None:
    common = ("--model", TIMM, *SETTINGS, "--out", "a.onnx_adapter")
    run("convert", adapter[0], "--to", "onnx-adapter", *common)
    content = ort.AdapterFormat.read_adapter(str(tmp_path / "a.onnx_adapter"))
    assert any(name.endswith("_lora_A") for name in content.get_parameters())
    refused = run("convert", adapter[0], "--to", "onnx-adapter", *common, code=1)
    assert "exists already" in refused.stderr


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("missing.safetensors", "--to", "peft"), 1, "no such adapter"),
        (("taken", "--to", "tflite"), 2, "tflite"),
        (("taken", "--to", "safetensors"), 1, "exists already"),
    ],
)
def test_what_is_refused(words, code, says, run: Run, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    out = "taken" if "safetensors" in words else "out"
    found = run("convert", *words, "--model", TIMM, "--out", out, code=code)
    assert says in found.stderr
    assert not (tmp_path / "out").exists()
