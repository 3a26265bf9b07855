"""What reading costs: beside torch.export alone, with depth, and for an 8B-shaped model on the meta device.

    python -m benchmarks.reading

Seconds are those of the process's own CPU time: other work on the machine does not count.
"""

from __future__ import annotations

import gc
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import timm
import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch import nn

import surgery
from benchmarks.record import keep
from surgery.anatomy.inputs import example_inputs

PAIRS = 9
DEPTHS = (12, 24, 48, 96)
_TEXT = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 128}
_LLAMA_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}


def main() -> None:
    """Measure, print, keep."""
    figures = {"clock": "process CPU time", "llama_8b_meta": eight_billion()}
    figures["ratio_to_export"] = {name: ratio(make()) for name, make in models().items()}
    figures["depth"] = {f"{layers}": depth(layers) for layers in DEPTHS}
    table = Table("question", "answer")
    for name, value in figures.items():
        table.add_row(name, str(value))
    Console().print(table)
    keep("reading", figures)


def models() -> dict[str, Callable[[], nn.Module]]:
    """Models at their published depth."""
    return {
        "vit_base_patch16_224": lambda: timm.create_model("vit_base_patch16_224"),
        "bert, 12 layers": lambda: transformers.BertModel(transformers.BertConfig(**_TEXT)),
        "llama, 24 layers": lambda: _llama(24),
    }


def ratio(model: nn.Module) -> dict[str, float]:
    """Reading beside torch.export alone: medians of pairs, after one of each."""
    inputs = example_inputs(model.eval())
    pairs = []

    @torch.no_grad()
    def export() -> None:
        torch.export.export(model, inputs.args, inputs.kwargs, strict=False)

    for _ in range(PAIRS + 1):
        alone = seconds(export)
        whole = seconds(lambda: surgery.read(model, inputs))
        pairs.append((alone, whole, whole / alone))
    exported, read, share = (statistics.median(column) for column in zip(*pairs[1:], strict=True))
    return {"export_s": round(exported, 3), "read_s": round(read, 3), "ratio": round(share, 3)}


def depth(layers: int) -> dict[str, Any]:
    """Seconds of reading a Llama of so many layers: the quicker of two."""
    model = _llama(layers)
    surgery.read(_llama(2))
    times = [seconds(lambda: surgery.read(model)) for _ in range(2)]
    least = min(times)
    return {"read_s": round(least, 3), "ms_per_layer": round(1000 * least / layers, 1)}


def eight_billion() -> dict[str, float]:
    """An 8B-shaped Llama on the meta device; the peak is that of the whole process."""
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**_LLAMA_8B))
    anatomy = None

    def read() -> None:
        nonlocal anatomy
        anatomy = surgery.read(model)

    taken = seconds(read)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    assert anatomy is not None
    return {"read_s": round(taken, 2), "peak_gb": round(peak, 2), "sites": len(anatomy.sites)}


def _llama(layers: int) -> nn.Module:
    config = transformers.LlamaConfig(**_TEXT, num_hidden_layers=layers)
    return transformers.LlamaForCausalLM(config)  # type: ignore[no-any-return]


def seconds(call: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    gc.collect()
    started = time.process_time()
    call()
    return time.process_time() - started


if __name__ == "__main__":
    main()
