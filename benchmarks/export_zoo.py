"""Which models come out whole: tiny random ones of many kinds, exported, verified, fused or not, and why.

``python -m benchmarks.export_zoo`` prints a table and keeps ``benchmarks/results/export_zoo.json``; with
``--resume`` only what is not in there is examined. The whole of both libraries: ``benchmarks.export_whole``.
"""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
import transformers as hf
from rich.console import Console
from rich.table import Table
from torch import nn

import exporters
from benchmarks.record import RESULTS, keep, load
from surgery.errors import SurgeryError

_SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
_TOKENS = {"vocab_size": 96, "max_position_embeddings": 64, "pad_token_id": 0}
_TEXT = {**_SMALL, **_TOKENS}
_IMAGE = {**_SMALL, "image_size": 32, "patch_size": 8}
_GQA = {**_TEXT, "num_key_value_heads": 2, "head_dim": 8}

_TIMM: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {"img_size": 32, "depth": 2},
    "vit_relpos_small_patch16_224": {"img_size": 32, "depth": 2},
    "deit3_small_patch16_224": {"img_size": 32, "depth": 2},
    "vit_small_patch14_dinov2": {"img_size": 28, "depth": 2},
    "vit_small_patch14_reg4_dinov2": {"img_size": 28, "depth": 2},
    "vit_small_patch16_dinov3": {"img_size": 32, "depth": 2},
    "vit_base_patch16_siglip_224": {"img_size": 32, "depth": 2, "embed_dim": 64, "num_heads": 4},
    "beit_base_patch16_224": {"img_size": 32, "depth": 2, "embed_dim": 64, "num_heads": 4},
    "beitv2_base_patch16_224": {"img_size": 32, "depth": 2, "embed_dim": 64, "num_heads": 4},
    "eva02_tiny_patch14_224": {"img_size": 28, "depth": 2},
    "cait_xxs24_224": {"img_size": 32, "depth": 2, "depth_token_only": 1},
    "xcit_nano_12_p16_224": {"depth": 2},
    "swin_tiny_patch4_window7_224": {"img_size": 56, "depths": (2, 2), "num_heads": (3, 6)},
    "swinv2_tiny_window8_256": {"img_size": 64, "depths": (2, 2), "num_heads": (3, 6)},
    "mvitv2_tiny": {},
    "pvt_v2_b0": {"depths": (1, 1, 1, 1)},
    "twins_svt_small": {"depths": (1, 1, 1, 1)},
    "levit_128s": {},
    "maxvit_rmlp_pico_rw_256": {"img_size": 64},
    "mobilevitv2_050": {},
    "mobilevit_xxs": {},
    "davit_tiny": {"depths": (1, 1, 1, 1)},
    "hiera_tiny_224": {"stages": (1, 1, 1, 1)},
    "efficientformerv2_s0": {},
    "convit_tiny": {"depth": 3},
}

_HF: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertForSequenceClassification", "BertConfig", _TEXT),
    "distilbert": (
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, **_TOKENS},
    ),
    "roberta": ("RobertaForSequenceClassification", "RobertaConfig", {**_TEXT, "pad_token_id": 1}),
    "electra": ("ElectraModel", "ElectraConfig", {**_TEXT, "embedding_size": 16}),
    "albert": ("AlbertModel", "AlbertConfig", {**_TEXT, "embedding_size": 16}),
    "mpnet": ("MPNetModel", "MPNetConfig", {**_TEXT, "pad_token_id": 1}),
    "deberta-v2": (
        "DebertaV2Model",
        "DebertaV2Config",
        {**_TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    ),
    "modernbert": ("ModernBertModel", "ModernBertConfig", _TEXT),
    "vit": ("ViTForImageClassification", "ViTConfig", _IMAGE),
    "hf-dinov2": ("Dinov2Model", "Dinov2Config", _IMAGE),
    "hf-beit": ("BeitModel", "BeitConfig", {**_IMAGE, "use_relative_position_bias": True}),
    "clip": (
        "CLIPModel",
        "CLIPConfig",
        {"text_config": {**_TEXT, "eos_token_id": 2}, "vision_config": _IMAGE},
    ),
    "clip-vision": ("CLIPVisionModel", "CLIPVisionConfig", _IMAGE),
    "clip-text": ("CLIPTextModel", "CLIPTextConfig", {**_TEXT, "eos_token_id": 2}),
    "siglip": ("SiglipModel", "SiglipConfig", {"text_config": _TEXT, "vision_config": _IMAGE}),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 96, "n_positions": 64},
    ),
    "gpt-neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", _TEXT),
    "opt": (
        "OPTForCausalLM",
        "OPTConfig",
        {**_TEXT, "ffn_dim": 64, "word_embed_proj_dim": 32, "pad_token_id": 1},
    ),
    "bloom": (
        "BloomForCausalLM",
        "BloomConfig",
        {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 96},
    ),
    "llama": ("LlamaForCausalLM", "LlamaConfig", _GQA),
    "mistral": ("MistralForCausalLM", "MistralConfig", _GQA),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", _GQA),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", _GQA),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", _GQA),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", _GQA),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", _GQA),
    "t5": (
        "T5Model",
        "T5Config",
        {"d_model": 32, "num_layers": 2, "d_kv": 8, "num_heads": 4, "d_ff": 64, "vocab_size": 96},
    ),
    "t5-encoder": (
        "T5EncoderModel",
        "T5Config",
        {"d_model": 32, "num_layers": 2, "d_kv": 8, "num_heads": 4, "d_ff": 64, "vocab_size": 96},
    ),
    "bart": (
        "BartModel",
        "BartConfig",
        {
            **_TOKENS,
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
        },
    ),
}


def builders() -> dict[str, Callable[[], nn.Module]]:
    """How to build each model, by name."""

    def from_timm(name: str) -> Callable[[], nn.Module]:
        return lambda: timm.create_model(name, num_classes=7, **_TIMM[name])

    def from_hf(name: str) -> Callable[[], nn.Module]:
        model, config, options = _HF[name]
        return lambda: getattr(hf, model)(getattr(hf, config)(**options))

    return {name: from_timm(name) for name in _TIMM} | {name: from_hf(name) for name in _HF}


def examine(build: Callable[[], nn.Module]) -> dict[str, Any]:
    """Export one model and say what came of it."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        return outcome(lambda: exporters.to_onnx(build().eval(), path))


def outcome(export: Callable[[], exporters.ExportReport]) -> dict[str, Any]:
    """What came of an export, as plain data."""
    started = time.perf_counter()
    try:
        report = export()
    except SurgeryError as error:
        return {"passed": False, "cause": f"{error.what}: {error.why}"[:500]}
    except Exception as error:  # a model that cannot even be built is listed too
        return {"passed": False, "cause": f"{type(error).__name__}: {error}"[:500]}
    return {
        "passed": True,
        "sites": len(report.sites),
        "fused": report.fused,
        "operators": dict(Counter(site.operator for site in report.sites if site.operator)),
        "unfused": report.unfused,
        "error": max(file.error or 0.0 for file in report.files),
        "notes": list(report.notes),
        "seconds": round(time.perf_counter() - started, 1),
    }


def as_table(figures: dict[str, dict[str, Any]]) -> Table:
    """One row a model."""
    table = Table(title="export zoo", title_justify="left")
    for column in ("model", "fused", "operators", "parity error", "unfused, failures"):
        table.add_column(column)
    for name, found in figures.items():
        if not found["passed"]:
            table.add_row(name, "", "", "", f"[red]{found['cause'][:160]}[/]")
            continue
        operators = ", ".join(f"{n} {op}" for op, n in found["operators"].items())
        reasons = "; ".join(f"{n} x {why}" for why, n in found["unfused"].items())
        fused = f"{found['fused']}/{found['sites']}"
        table.add_row(name, fused, operators, f"{found['error']:.0e}", reasons)
    return table


def main(chosen: list[str]) -> None:
    """Examine the chosen models, or all; the results of others stay as they were."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    known = builders()
    console = Console(width=None if sys.stdout.isatty() else 200)
    path = RESULTS / "export_zoo.json"
    resume = "--resume" in chosen
    chosen = [name for name in chosen if name != "--resume"]
    going_on = path.exists() and (resume or chosen)
    figures = load("export_zoo") if going_on else {}
    for name in chosen or known:
        if resume and name in figures:
            continue
        figures[name] = examine(known[name])
        console.print(f"{name}: {figures[name]}")
        keep("export_zoo", figures)
    console.print(as_table(figures))


if __name__ == "__main__":
    main(sys.argv[1:])
