"""Tiny models as the command line asks for them, and files made from them once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn
from transformers import BertConfig
from typer.testing import CliRunner

import exporters
import surgery
from surgery.cli import app

TIMM = "timm:vit_tiny_patch16_224"
SIZES = {"depth": 2, "img_size": 32, "embed_dim": 32, "num_heads": 2, "num_classes": 5}
SETTINGS = [word for key, value in SIZES.items() for word in ("--set", f"{key}={value}")]
FACTORY = """
import torch
from torch import nn
import timm

def tiny(depth=2):
    return timm.create_model(
        "vit_tiny_patch16_224", depth=depth, img_size=32, embed_dim=32, num_heads=2, num_classes=5
    )

class Silent(nn.Module):
    "Tells nobody what it takes."
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))
    def forward(self, x):
        return self.o(nn.functional.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))

def number():
    return 3

def interrupted():
    raise KeyboardInterrupt

def broken():
    raise ZeroDivisionError("no such luck")
"""

Run = Callable[..., Any]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in an empty folder with a module of factories in it."""
    (tmp_path / "factories_for_cli.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))

    def command(*words: object, code: int = 0) -> Any:
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exit_code == code, f"{result.exit_code}\n{result.stdout}\n{result.stderr}"
        return json.loads(result.stdout) if "--json" in words and result.stdout else result

    return command


def base() -> nn.Module:
    """The model that ``timm:`` with SETTINGS builds, weights included."""
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", **SIZES).eval()


def trained(path: Path, policy: str = "vit-attn-qv", seed: int = 1, **overrides: Any) -> nn.Module:
    """Apply, move everything that trains, save; the adapted model."""
    model = surgery.apply(base(), policy, rank=2, seed=0, **overrides)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    surgery.save(model, path)
    return model.eval()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="session")
def adapter(folder: Path) -> tuple[Path, nn.Module]:
    """An adapter file, and the adapted model that it came from."""
    path = folder / "adapter.safetensors"
    return path, trained(path)


@pytest.fixture(scope="session")
def onnx_file(folder: Path) -> Path:
    """An exported file; beside it lies the portable one."""
    exporters.to_onnx(base(), folder / "model.onnx")
    return folder / "model.onnx"


@pytest.fixture(scope="session")
def bert(folder: Path) -> Path:
    """A transformers folder with config.json alone."""
    config = BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        vocab_size=60, num_labels=3, architectures=["BertForSequenceClassification"],
    )  # fmt: skip
    config.save_pretrained(folder / "bert")
    return folder / "bert"
