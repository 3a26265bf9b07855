"""Every library policy does what it says on a vision model, a text encoder and a language model."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

import policies
import surgery
from policies import Policy
from policies.registry import LIBRARY
from surgery import Anatomy

POLICIES = [policies.get(path) for path in sorted(LIBRARY.glob("*.yaml"))]
ADAPTING = [policy for policy in POLICIES if policy.select]
WHOLE = [policy for policy in ADAPTING if all(s.part is None for s in policy.select)]


def vit() -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, embed_dim=48, depth=3, num_heads=3, num_classes=5
    )


def bert() -> nn.Module:
    config = BertConfig(
        vocab_size=64,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=96,
    )
    return BertForSequenceClassification(config)


def llama() -> nn.Module:
    """Grouped keys and values, so that their projections are rectangular; a gated feed-forward."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
    )
    return LlamaForCausalLM(config)


SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
IMAGES = SMALL | {"image_size": 16, "patch_size": 8}


def clip() -> nn.Module:
    text = SMALL | {"vocab_size": 40, "max_position_embeddings": 16, "eos_token_id": 39}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=IMAGES, projection_dim=8))


def llava() -> nn.Module:
    text = LlamaConfig(**SMALL, vocab_size=40, num_key_value_heads=2)
    vision = CLIPVisionConfig(**IMAGES)
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_id=39)
    return LlavaForConditionalGeneration(config)


def t5() -> nn.Module:
    return T5ForConditionalGeneration(
        T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    )


PARTIAL = {
    "dual-vision-qv": (clip, "vision_model.", 4),
    "vlm-language-qv": (llava, "model.language_model.", 4),
    "seq2seq-decoder-qv": (t5, "decoder.", 8),
}


def layer_of(name: str) -> int:
    return int(re.findall(r"\.(\d+)\.", name)[0])


@functools.cache
def read(make: Callable[[], nn.Module]) -> Anatomy:
    return surgery.read(make())


def forward(model: nn.Module, make: Callable[[], nn.Module]) -> Tensor:
    if make is vit:
        return model(torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32))
    return model(torch.arange(14).view(2, 7)).logits


@pytest.mark.parametrize("make", [vit, bert, llama])
@pytest.mark.parametrize("policy", WHOLE, ids=lambda policy: policy.name)
def test_it_adapts_what_it_names_and_all_of_it_gets_a_gradient(
    policy: Policy, make: Callable[[], nn.Module]
) -> None:
    model, anatomy = make().eval(), read(make)
    before = forward(model, make).detach()
    surgery.apply(model, policy, anatomy=anatomy, seed=0)
    after = forward(model, make)
    torch.testing.assert_close(after.detach(), before, rtol=1e-4, atol=1e-4)
    after.square().sum().backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trained and all(p.grad is not None for p in trained.values())
    for selection in policy.select:
        layers = selection.layers(anatomy.depth) or range(anatomy.depth)
        for role in {p.role for p in anatomy.projections} & set(selection.roles):
            slots = [name for name in trained if f".{role.short}." in name]
            assert {layer_of(name) for name in slots} == set(layers), role


@pytest.mark.parametrize("make", [vit, bert])
@pytest.mark.parametrize("policy", [p for p in POLICIES if not p.select], ids=lambda p: p.name)
def test_without_adapters_the_rest_trains(policy: Policy, make: Callable[[], nn.Module]) -> None:
    plan = surgery.plan(make(), policy, anatomy=read(make))
    assert not plan.operations and all(plan.train[word] for word in policy.train)


@pytest.mark.parametrize("policy", [p for p in ADAPTING if p not in WHOLE], ids=lambda p: p.name)
def test_a_policy_for_a_part_stays_within_it(policy: Policy) -> None:
    make, inside, count = PARTIAL[policy.name]
    plan = surgery.plan(make(), policy)
    assert len(plan.operations) == count and not plan.trained_names
    assert all(o.projection.module.startswith(inside) for o in plan.operations)
