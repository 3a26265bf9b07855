"""Latency: everyone gets the same turns, and what came before a turn is not measured."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
import torch
import transformers as hf
from rich.console import Console
from torch import nn

import exporters
from exporters import latency


def test_the_span_leaves_out_a_tenth_at_either_end() -> None:
    row = latency._latency("x", [*map(float, range(1, 20)), 1000.0])
    assert (row.median_ms, row.low_ms, row.high_ms) == (10.5, 3.0, 18.0)


def test_files_and_eager_side_by_side(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 2)).eval()
    inputs = torch.randn(2, 8)
    threads = torch.get_num_threads()
    files = exporters.to_onnx(model, tmp_path / "m.onnx", target="portable", example_inputs=inputs)
    report = exporters.benchmark(
        model, files, inputs=inputs, batch=3, rounds=2, calls=3, threads=1, compiled=False
    )
    assert [row.name for row in report.rows] == ["torch eager", "onnx portable"]
    assert all(0 < row.low_ms <= row.median_ms <= row.high_ms for row in report.rows)
    assert list(report.sizes.values()) == [(3, 8)]
    assert (report.threads, report.calls) == (1, 6)
    assert report.ratio("torch eager", "torch eager") == 1
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("nothing", [{"rounds": 0}, {"calls": 0}, {"batch": 0}])
def test_measuring_nothing_is_refused(nothing: dict[str, int]) -> None:
    with pytest.raises(exporters.ExportError, match="nothing to measure"):
        exporters.benchmark(nn.Linear(2, 2).eval(), {}, inputs=torch.ones(1, 2), **nothing)


def test_a_compiler_that_fails_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: nn.Module) -> Callable[..., None]:
        def call(**inputs: torch.Tensor) -> None:
            raise RuntimeError("no compiler on this machine")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    model = nn.Linear(2, 2).eval()
    report = exporters.benchmark(model, {}, inputs=torch.ones(1, 2), rounds=1, calls=1, warmup=0)
    assert [row.name for row in report.rows] == ["torch eager"]
    assert report.notes == ("torch.compile did not run: RuntimeError",)
    console = Console(width=120, file=StringIO())
    console.print(report)
    assert "torch.compile did not run" in " ".join(console.file.getvalue().split())


def test_a_file_with_a_cache_takes_a_prompt(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 60}
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**sizes, num_attention_heads=2)).eval()
    path, turns = tmp_path / "t.onnx", {"rounds": 1, "calls": 1, "warmup": 0, "compiled": False}
    exporters.to_onnx(model, path, cache=True, portable=False, verify=False, precision="fp16")
    report = exporters.benchmark(model, {"t": path}, batch=3, **turns)
    assert [row.name for row in report.rows] == ["torch eager", "t"]
    assert report.sizes["input_ids"][0] == 3
    assert report.notes == ("t has a cache: timed on a prompt, with no past",)
    ids = {"input_ids": torch.ones(1, 4).long()}
    with pytest.raises(exporters.ExportError, match="it takes attention_mask too") as caught:
        exporters.benchmark(model, {"t": path}, inputs=ids, **turns)
    assert "inputs=" in str(caught.value)
