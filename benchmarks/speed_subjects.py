"""The models that training is timed on: real widths, random weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import timm
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel

_MINILM = {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}
_SMOLLM2 = {
    "hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536,
    "vocab_size": 49152, "tie_word_embeddings": True, "use_cache": False,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Subject:
    """A model at its real width, and one batch for it."""

    name: str
    make: Callable[[], nn.Module]
    embedding: str
    batch: dict[str, Tensor]


CPU = {"ViT-S": (8, 32), "ViT-B": (8, 32), "BERT-base": (8,), "MiniLM": (8,), "SmolLM2": (2,)}
GPU = {"ViT-S": (256,), "ViT-B": (128,), "BERT-base": (128,), "MiniLM": (256,), "SmolLM2": (32,)}
"""Batch sizes; on a GPU a step takes tens of milliseconds with them."""


def sizes_on(device: str) -> Mapping[str, Iterable[int]]:
    """The GPU's batch sizes there, the smallest elsewhere, for a rehearsal."""
    return GPU if device == "cuda" else {name: batches[:1] for name, batches in CPU.items()}


def subjects(depth: int, sizes: Mapping[str, Iterable[int]] = CPU) -> Iterator[Subject]:
    """ViT-S and ViT-B (224 pixels), BERT-base and MiniLM (128 tokens), SmolLM2-135M (512 tokens)."""
    for size, word in ("S", "small"), ("B", "base"):
        make = partial(timm.create_model, f"vit_{word}_patch16_224", num_classes=10, depth=depth)
        for batch in sizes[f"ViT-{size}"]:
            images = {"x": torch.randn(batch, 3, 224, 224)}
            yield Subject(f"ViT-{size} b{batch}", make, "patch_embed", images)
    for name, config in ("BERT-base", {}), ("MiniLM", _MINILM):
        shape = BertConfig(num_hidden_layers=depth, **config)
        for batch in sizes[name]:
            text = {"input_ids": torch.randint(0, 30000, (batch, 128))}
            yield Subject(f"{name} b{batch}", partial(BertModel, shape), "embeddings", text)
    llama = LlamaConfig(num_hidden_layers=depth, **_SMOLLM2)
    for batch in sizes["SmolLM2"]:
        tokens = {"input_ids": torch.randint(0, 49000, (batch, 512))}
        yield Subject(f"SmolLM2 b{batch}", partial(LlamaModel, llama), "embed_tokens", tokens)
