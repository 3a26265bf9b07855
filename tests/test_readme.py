"""The README's code runs as pasted."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
RUNNABLE = [block for block in BLOCKS if block.startswith("import")]


def test_both_examples_are_there() -> None:
    assert len(RUNNABLE) == 2 and "timm" in RUNNABLE[0] and "transformers" in RUNNABLE[1]
    lines = [line for line in RUNNABLE[0].splitlines() if line.strip()]
    assert len(lines) <= 10, "the README promises ten lines"


@pytest.mark.parametrize("block", RUNNABLE, ids=["timm", "transformers"])
def test_the_example_runs_as_pasted(
    block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    if "to_onnx" in block:
        assert (tmp_path / "model.onnx").stat().st_size > 1_000_000


def test_the_table_quotes_what_was_measured() -> None:
    kept = json.loads((ROOT / "benchmarks/results/alternatives.json").read_text(encoding="utf-8"))
    figures, latency = kept["figures"], kept["figures"]["fused_attention"]["latency"]
    quoted = [
        f"PEFT {kept['environment']['versions']['peft']}",
        f"{figures['query_value_weights']['surgery_symlora']:,} SymLoRA",
        f"| {figures['dead_adapters_beit']['peft']}: ",
        f"**{figures['dead_adapters_beit']['surgery']}**",
        f"{figures['pissa_start']['peft_s']:.1f} s",
        f"{figures['pissa_start']['surgery_s']:.2f} s",
        f"{figures['fused_attention']['attention_run']['surgery_fused']} of 12",
        *(f"{latency[name]['ratio_to_plain']:.2f}" for name in ("ort_optimizer", "surgery_fused")),
    ]
    assert [figure for figure in quoted if figure not in TEXT] == []


def test_the_training_figures_are_those_of_its_results() -> None:
    kept = json.loads((ROOT / "benchmarks/results/layers.json").read_text(encoding="utf-8"))
    row = next(r for r in kept["figures"]["rows"] if r["name"].startswith("ViT-S b8, q and v"))
    peft, ours, least = (f"{row[name]['overhead']:.0%}" for name in ("peft", "lora", "least"))
    said = f"| {peft} | **{ours}**, where the gradients alone take {least} |".replace("%", " %")
    assert row["rank"] == 8 and said in TEXT


def test_the_demo_figures_are_those_of_its_results() -> None:
    for adapter in ("symlora", "srlora", "lora"):
        path = ROOT / f"benchmarks/results/demo/{adapter}.json"
        run = json.loads(path.read_text(encoding="utf-8"))
        for text in (TEXT, (ROOT / "docs/demo.md").read_text(encoding="utf-8")):
            assert (
                f"{run['accuracy']['adapted'] / run['accuracy']['total']:.1%}".replace("%", " %")
                in text
            )
            assert f"{run['training']['adapter_weights']:,}" in text
