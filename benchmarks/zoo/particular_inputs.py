"""Example inputs of model types whose configurations do not say enough, by their names in transformers."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.zoo.image_inputs import IMAGES
from benchmarks.zoo.input_parts import TOKENS, Inputs, Makers, ids, ones
from benchmarks.zoo.sound_inputs import SOUNDS


def particular_inputs(name: str, config: Any) -> Inputs | None:
    """Inputs for a model of this type, or with this head; None where the configuration tells enough."""
    makers = IMAGES | SOUNDS | _OTHERS
    make = makers.get(name, makers.get(name.partition(":")[0]))
    return make(config) if make else None


def _series(config: Any) -> Inputs:
    past = config.context_length + max(config.lags_sequence)
    shapes = {"past": past, "future": config.prediction_length}
    size = () if config.input_size == 1 else (config.input_size,)
    made = {}
    for name, length in shapes.items():
        made[f"{name}_values"] = torch.rand(2, length, *size)
        made[f"{name}_time_features"] = torch.rand(2, length, config.num_time_features)
    return made | {"past_observed_mask": torch.ones(2, past, *size)}


def _decisions(config: Any) -> Inputs:
    steps = 5
    return {
        "states": torch.randn(2, steps, config.state_dim),
        "actions": torch.randn(2, steps, config.act_dim),
        "rewards": torch.randn(2, steps, 1),
        "returns_to_go": torch.randn(2, steps, 1),
        "timesteps": torch.arange(steps).expand(2, -1).clone(),
        "attention_mask": ones(2, steps),
    }


def _qformer(config: Any) -> Inputs:
    return {
        "query_embeds": torch.randn(2, 4, config.hidden_size),
        "encoder_hidden_states": torch.randn(2, 9, config.encoder_hidden_size),
    }


def _borrowed_states(config: Any) -> Inputs:
    """Keys and values of the large model whose tokens the assistant guesses."""
    text = config.get_text_config()
    states = {}
    for layer, kind in enumerate(text.layer_types):
        own = text.per_layer_config[layer]
        shape = (2, own.num_key_value_heads, 4, own.head_dim)
        states[kind] = (torch.randn(shape), torch.randn(shape))
    return {
        "inputs_embeds": torch.randn(2, 4, 2 * config.backbone_hidden_size),
        "position_ids": torch.arange(4).expand(2, -1).clone(),
        "shared_kv_states": states,
    }


_OTHERS: Makers = {
    "autoformer": _series,
    "blip_2_qformer": _qformer,
    "decision_transformer": _decisions,
    "gemma4_assistant:causal-lm": _borrowed_states,
    "gemma4_unified_assistant:causal-lm": _borrowed_states,
    "informer": _series,
    "muse_glimmer_assistant": lambda config: {
        "noise_embeds": torch.randn(2, 8, config.hidden_size),
        "context_hidden_states": torch.randn(2, 8, 2 * config.hidden_size),
        "attention_mask": ones(2, 16),
    },
    "perceiver": lambda config: {"inputs": torch.randn(2, TOKENS, config.d_model)},
    "perceiver:sequence": lambda config: {"inputs": ids()},
    "rwkv:causal-lm": lambda config: {"input_ids": ids(4)},
    "time_series_transformer": _series,
    "timesfm": lambda config: {
        "past_values": torch.rand(2, 4 * config.patch_length),
        "past_values_padding": torch.zeros(2, 4 * config.patch_length),
        "freq": torch.zeros(2, 1, dtype=torch.long),
    },
}  # fmt: skip
