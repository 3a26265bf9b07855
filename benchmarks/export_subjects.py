"""The models that the export benchmark measures, at their real sizes, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import timm
import torch
import transformers as hf
from torch import nn

from exporters.inputs import Inputs, collect


@dataclass(frozen=True)
class Subject:
    """A model to measure.

    Attributes:
        build: Makes it.
        kind: ``model_type`` for ONNX Runtime's optimizer.
        heads, width: What that optimizer wants to be told.
        length: Of token inputs.
    """

    build: Callable[[], nn.Module]
    kind: str
    heads: int
    width: int
    length: int = 0

    def inputs(self, model: nn.Module) -> Inputs:
        """Inputs at batch 2, all tokens real."""
        found = collect(model)
        if not self.length:
            return found
        longer = found.resized({"sequence": self.length})
        ones = {n: torch.ones_like(t) for n, t in longer.tensors.items() if "mask" in n}
        return Inputs({**longer.tensors, **ones}, longer.constants, longer.axes)


def _llama() -> nn.Module:
    model: nn.Module = hf.LlamaForCausalLM(
        hf.LlamaConfig(
            hidden_size=512,
            intermediate_size=1376,
            num_hidden_layers=8,
            num_attention_heads=8,
            num_key_value_heads=2,
            vocab_size=8192,
        )
    )
    return model


def _minilm() -> nn.Module:
    model: nn.Module = hf.BertModel(
        hf.BertConfig(
            hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
        )
    )
    return model


SUBJECTS = {
    "vit-s": Subject(lambda: timm.create_model("vit_small_patch16_224"), "vit", 6, 384),
    "bert-base": Subject(lambda: hf.BertModel(hf.BertConfig()), "bert", 12, 768, 128),
    "minilm": Subject(_minilm, "bert", 12, 384, 128),
    "dinov2-s": Subject(
        lambda: timm.create_model("vit_small_patch14_dinov2", img_size=224), "vit", 6, 384
    ),
    "swin-t": Subject(lambda: timm.create_model("swin_tiny_patch4_window7_224"), "swin", 0, 0),
    "clip-vision": Subject(lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig()), "clip", 12, 768),
    "gqa-decoder": Subject(_llama, "gpt2", 8, 512, 128),
    "vit-b": Subject(lambda: timm.create_model("vit_base_patch16_224"), "vit", 12, 768),
}
