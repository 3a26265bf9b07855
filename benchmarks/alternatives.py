"""The README's comparison, measured: what the usual tools do with the same models.

    python -m benchmarks.alternatives

Needs ``pip install peft``. Models are randomly initialised at their real sizes: nothing measured
here depends on the values of the weights.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import peft
import timm
import torch
from onnxruntime.transformers.optimizer import optimize_model
from rich.console import Console
from rich.table import Table
from torch import nn

import exporters
import surgery
from benchmarks.record import keep

VIT, BEIT, SMALL = "vit_base_patch16_224", "beit_base_patch16_224", "vit_small_patch16_224"
ROUNDS = 3


def main() -> None:
    """Measure every row, print the table, keep the figures."""
    figures = {
        "query_value_weights": query_value_weights(),
        "dead_adapters_beit": dead_adapters(),
        "stray_targets": stray_targets(),
        "fused_attention": fused_attention(),
        "pissa_start": pissa_start(),
    }
    table = Table("question", "answers")
    for name, value in figures.items():
        table.add_row(name, str(value))
    Console().print(table)
    keep("alternatives", figures)


def with_peft(name: str, targets: list[str], **options: Any) -> nn.Module:
    """A timm model with PEFT's LoRA at rank 8."""
    config = peft.LoraConfig(r=8, lora_alpha=8, target_modules=targets, **options)
    return peft.get_peft_model(timm.create_model(name, num_classes=10), config)


def trained(model: nn.Module, word: str) -> int:
    """Trainable numbers of the parameters whose names hold ``word``."""
    return sum(p.numel() for n, p in model.named_parameters() if p.requires_grad and word in n)


def query_value_weights() -> dict[str, int]:
    """Adapter weights for query and value of ViT-B's fused qkv at rank 8.

    PEFT adapts the whole fused projection, key included; its factors cannot be confined to rows.
    """
    found = {"peft_lora_whole_qkv": trained(with_peft(VIT, ["qkv"]), "lora")}
    for adapter in ("lora", "symlora"):
        model = timm.create_model(VIT, num_classes=10)
        surgery.apply(model, "vit-attn-qv", adapter=adapter)
        found[f"surgery_{adapter}"] = trained(model, "adapters")
    return found


def dead_adapters() -> dict[str, str]:
    """Adapters without a gradient after one backward on BEiT-B, of all adapters."""
    x = torch.randn(2, 3, 224, 224)
    lora = with_peft(BEIT, ["qkv"], modules_to_save=["head"])
    ours = timm.create_model(BEIT, num_classes=10)
    surgery.apply(ours, "vit-attn-qv", adapter="lora")
    return {"peft": dead(lora, "lora_B", x), "surgery": dead(ours, ".B", x)}


def dead(model: nn.Module, factor: str, x: torch.Tensor) -> str:
    """``"12 of 12"``: how many of the adapters' B factors got no gradient."""
    model.train()(x).square().mean().backward()
    factors = [p for n, p in model.named_parameters() if factor in n and p.requires_grad]
    without = sum(p.grad is None or not p.grad.any() for p in factors)
    return f"{without} of {len(factors)}"


def stray_targets() -> list[str]:
    """What ``target_modules=["qkv", "proj"]`` catches outside attention on ViT-B."""
    model = with_peft(VIT, ["qkv", "proj"])
    hit = [name for name, module in model.named_modules() if hasattr(module, "lora_A")]
    return [name for name in hit if ".attn." not in name]


def fused_attention() -> dict[str, Any]:
    """Attention operators that ONNX Runtime runs, and its latency, on ViT-S, batch 1."""
    model = timm.create_model(SMALL).eval()
    x = torch.randn(1, 3, 224, 224)
    with tempfile.TemporaryDirectory() as folder:
        ours = Path(folder) / "ours.onnx"
        report = exporters.to_onnx(model, ours)
        plain = Path(folder) / "plain.onnx"
        batch = torch.export.Dim("batch")
        with torch.no_grad():
            torch.onnx.export(
                model, (torch.randn(2, 3, 224, 224),), plain, dynamo=True, opset_version=20,
                input_names=["x"], dynamic_shapes=({0: batch},), verbose=False,
            )  # fmt: skip
        optimized = Path(folder) / "optimizer.onnx"
        optimize_model(
            str(plain), model_type="vit", num_heads=6, hidden_size=384
        ).save_model_to_file(str(optimized))
        files = {"plain_dynamo": plain, "ort_optimizer": optimized, "surgery_fused": ours}
        counts = {name: attention_run(path, Path(folder)) for name, path in files.items()}
        latency = exporters.benchmark(model, files, inputs=x, compiled=False, rounds=25)
    rows = {row.name: asdict(row) for row in latency.rows}
    for name, row in rows.items():
        row["ratio_to_plain"] = round(latency.ratio(name, "plain_dynamo"), 3)
    return {"attention_run": counts, "latency": rows, "parity": report.files[0].error}


def attention_run(path: Path, folder: Path) -> int:
    """How many attention operators ONNX Runtime runs after its own optimisation."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / f"{path.stem}.run.onnx")
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    graph = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
    return sum(node.op_type.endswith("Attention") for node in graph.node)


def pissa_start() -> dict[str, float]:
    """Seconds to start PiSSA at rank 8 on ViT-B's query and value (PEFT: the whole qkv), medians."""
    os.environ["MODEL_SURGERY_CACHE"] = "off"  # as for a model that was never started from
    config = peft.LoraConfig(r=8, target_modules=["qkv"], init_lora_weights="pissa")
    model = timm.create_model(VIT, num_classes=10)
    anatomy = surgery.read(model)
    ours, theirs = [], []
    for _ in range(ROUNDS):
        fresh = timm.create_model(VIT, num_classes=10)
        theirs.append(seconds(partial(peft.get_peft_model, fresh, config)))
        ours.append(
            seconds(lambda: surgery.apply(model, "vit-attn-qv", adapter="pissa", anatomy=anatomy))
        )
        surgery.undo(model)
    found = {"surgery_s": statistics.median(ours), "peft_s": statistics.median(theirs)}
    return {name: round(value, 3) for name, value in found.items()}


def seconds(call: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
