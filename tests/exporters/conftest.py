"""Tiny models with random weights, one for each way of writing attention."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import transformers as hf
from torch import nn

import surgery

warnings.filterwarnings("ignore", module="torch")

_SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
_TEXT = {**_SMALL, "vocab_size": 60, "max_position_embeddings": 64}
_IMAGE = {**_SMALL, "image_size": 32, "patch_size": 16}


def _vit(name: str, **changes: Any) -> nn.Module:
    return timm.create_model(
        name,
        **{
            "depth": 2,
            "img_size": 28,
            "embed_dim": 32,
            "num_heads": 2,
            "num_classes": 7,
            **changes,
        },
    )


ZOO: dict[str, Callable[[], nn.Module]] = {
    "vit": lambda: _vit("vit_tiny_patch16_224", img_size=32),
    "dinov2": lambda: _vit("vit_small_patch14_dinov2"),
    "deit3": lambda: _vit("deit3_small_patch16_224", img_size=32),
    "beit": lambda: _vit("beit_base_patch16_224", img_size=32),
    "cait": lambda: _vit("cait_xxs24_224", img_size=32, depth=1, depth_token_only=1),
    "eva02": lambda: _vit("eva02_tiny_patch14_224"),
    "swin": lambda: timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=56, depths=(2, 1), embed_dim=16, num_heads=(2, 2)
    ),
    "resnet": lambda: timm.create_model("resnet10t", num_classes=7),
    "bert": lambda: hf.BertForSequenceClassification(hf.BertConfig(**_TEXT, num_labels=3)),
    "albert": lambda: hf.AlbertModel(hf.AlbertConfig(**_TEXT, embedding_size=16)),
    "hf-vit": lambda: hf.ViTForImageClassification(hf.ViTConfig(**_IMAGE)),
    "clip-vision": lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**_IMAGE)),
    "clip-text": lambda: hf.CLIPTextModel(hf.CLIPTextConfig(**_TEXT)),
    "gpt2": lambda: hf.GPT2LMHeadModel(
        hf.GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=60, bos_token_id=1, eos_token_id=2)
    ),
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_TEXT, num_key_value_heads=1)),
    "hf-beit": lambda: hf.BeitModel(hf.BeitConfig(**_IMAGE, use_relative_position_bias=True)),
    "siglip-vision": lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**_IMAGE)),
    "t5": lambda: hf.T5Model(
        hf.T5Config(d_model=32, num_layers=1, d_kv=16, num_heads=2, d_ff=64, vocab_size=60)
    ),
}


def lively(name: str) -> nn.Module:
    """A model of the zoo in eval mode, always with the same weights."""
    return enlivened(ZOO[name])


def enlivened(make: Callable[[], nn.Module]) -> nn.Module:
    """What is made, in eval mode, always with the same weights."""
    torch.manual_seed(0)
    model = make().eval()
    # Fresh weights hide mistakes: attention is all but uniform, gains and biases are ones and zeros.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif parameter.ndim == 2:
                parameter.mul_(4)
    return model


@pytest.fixture
def build() -> Callable[[str], nn.Module]:
    return lively


POLICY = {"name": "qv", "select": [{"roles": ["query", "value"]}], "train": ["head"]}


def adapt(model: nn.Module, seed: int, policy=POLICY, **options) -> nn.Module:
    """A copy with adapters that learned something."""
    model = copy.deepcopy(model)
    surgery.apply(model, policy, seed=seed, **options)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()
