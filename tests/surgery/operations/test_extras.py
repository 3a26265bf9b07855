"""The words of ``train``, on real architectures with tiny configurations."""

from __future__ import annotations

import pytest
import timm
import torch
import transformers
from torch import nn

from surgery.errors import PlanError
from surgery.operations.extras import is_norm
from surgery.operations.planner import plan

SIZE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
VIT = {"img_size": 32, "depth": 2}
SWIN = {"img_size": 56, "depths": (1, 1), "embed_dim": 24, "num_heads": (1, 2)}
TEXT = {**SIZE, "vocab_size": 99, "max_position_embeddings": 64}


def trains(model: nn.Module, *words: str) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    made = plan(model, {"name": "p", "train": list(words)})
    return dict(made.train), made.notes


def bert(**more: object) -> nn.Module:
    config = transformers.BertConfig(**TEXT, num_labels=2)
    return transformers.BertForSequenceClassification(config)


def test_a_classifier_with_as_many_classes_as_token_types_is_a_head() -> None:
    assert trains(bert(), "head")[0] == {"head": ("classifier.weight", "classifier.bias")}


def test_a_head_of_several_layers_trains_whole() -> None:
    config = transformers.RobertaConfig(**TEXT, num_labels=3, type_vocab_size=1)
    found, _ = trains(transformers.RobertaForSequenceClassification(config), "head")
    assert set(found["head"]) == {
        f"classifier.{layer}.{name}"
        for layer in ("dense", "out_proj")
        for name in ("weight", "bias")
    }


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_that_predicts_the_vocabulary_stays_frozen_with_a_note(tied: bool) -> None:
    config = transformers.LlamaConfig(**TEXT, num_key_value_heads=1, tie_word_embeddings=tied)
    found, notes = trains(transformers.LlamaForCausalLM(config), "head", "norms")
    assert found["head"] == ()
    assert any("predicts the vocabulary (99 words)" in note for note in notes)


@pytest.mark.parametrize(
    ("name", "small", "head"),
    [
        ("vit_tiny_patch16_224", VIT, {"head.weight", "head.bias"}),
        ("swin_tiny_patch4_window7_224", SWIN, {"head.fc.weight", "head.fc.bias"}),
    ],
)
def test_the_head_of_timm_models(name: str, small: dict[str, object], head: set[str]) -> None:
    model = timm.create_model(name, num_classes=7, **small)
    assert set(trains(model, "head")[0]["head"]) == head


def test_a_model_without_head_says_so() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=0)
    found, notes = trains(model, "head", "norms")
    assert found["head"] == ()
    assert "train: head: this model has none" in notes


def test_norms_biases_and_embeddings_are_found_by_what_they_are() -> None:
    model = bert()
    found, _ = trains(model, "norms", "biases", "embeddings")
    assert all("LayerNorm" in name for name in found["norms"])
    assert len(found["norms"]) == 2 * (1 + 2 * 2)
    assert set(found["biases"]) == {n for n, _ in model.named_parameters() if n.endswith(".bias")}
    assert len(found["embeddings"]) == 3
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT, num_key_value_heads=1))
    found, notes = trains(llama, "norms", "biases")
    assert len(found["norms"]) == 5
    assert found["biases"] == ()
    assert "train: biases: this model has none" in notes


def test_globs_and_their_near_words() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3)
    assert trains(model, "*pos_embed")[0] == {"*pos_embed": ("pos_embed",)}
    with pytest.raises(PlanError, match="did you mean 'norms'"):
        trains(model, "normz")


def test_what_counts_as_a_norm() -> None:
    class TinyRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

    class NormalisedLinear(nn.Linear):
        pass

    norms = [nn.LayerNorm(3), nn.BatchNorm2d(3), nn.GroupNorm(1, 3), nn.RMSNorm(3), TinyRMSNorm()]
    assert all(is_norm(module) for module in norms)
    assert not any(
        is_norm(module) for module in (NormalisedLinear(3, 3), nn.Linear(3, 3), nn.GELU())
    )
