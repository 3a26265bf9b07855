"""Example inputs of model types whose configurations do not say enough, by their names in transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Inputs = dict[str, Tensor]
_TOKENS = 16


def particular_inputs(kind: str, config: Any) -> Inputs | None:
    """Inputs for a model of this type and configuration; None where the configuration tells enough."""
    make = _MAKERS.get(kind)
    return make(config) if make else None


def _ids(length: int = _TOKENS) -> Tensor:
    return torch.randint(5, 60, (2, length))


def _ones(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.long)


def _heard(frames: int, bins: int, mask: str) -> Inputs:
    """A spectrogram, bins last, and the mask that goes with it."""
    return {"input_features": torch.randn(2, frames, bins), mask: _ones(2, frames).bool()}


def _audioflamingo3(config: Any) -> Inputs:
    frames = 2 * config.max_source_positions
    return {
        "input_features": torch.randn(2, config.num_mel_bins, frames),
        "input_features_mask": _ones(2, frames),
    }


def _series(config: Any) -> Inputs:
    past = config.context_length + max(config.lags_sequence)
    shapes = {"past": past, "future": config.prediction_length}
    size = () if config.input_size == 1 else (config.input_size,)
    made = {}
    for name, length in shapes.items():
        made[f"{name}_values"] = torch.rand(2, length, *size)
        made[f"{name}_time_features"] = torch.rand(2, length, config.num_time_features)
    return made | {"past_observed_mask": torch.ones(2, past, *size)}


def _clap(config: Any) -> Inputs:
    audio = config.audio_config
    sound = torch.randn(2, 1, audio.spec_size, audio.num_mel_bins)
    return {"input_ids": _ids(), "attention_mask": _ones(2, _TOKENS), "input_features": sound}


def _decisions(config: Any) -> Inputs:
    steps = 5
    return {
        "states": torch.randn(2, steps, config.state_dim),
        "actions": torch.randn(2, steps, config.act_dim),
        "rewards": torch.randn(2, steps, 1),
        "returns_to_go": torch.randn(2, steps, 1),
        "timesteps": torch.arange(steps).expand(2, -1).clone(),
        "attention_mask": _ones(2, steps),
    }


def _dia(config: Any) -> Inputs:
    channels = config.decoder_config.num_channels
    return {
        "input_ids": _ids(),
        "attention_mask": _ones(2, _TOKENS),
        "decoder_input_ids": torch.randint(5, 60, (2, 8, channels)),
    }


def _idefics(config: Any) -> Inputs:
    side = config.vision_config.image_size
    return {
        "input_ids": _ids(),
        "attention_mask": _ones(2, _TOKENS),
        "pixel_values": torch.randn(2, 1, 3, side, side),
        "image_attention_mask": _ones(2, _TOKENS, 1),
    }


def _lxmert(config: Any) -> Inputs:
    return {
        "input_ids": _ids(),
        "visual_feats": torch.randn(2, 5, config.visual_feat_dim),
        "visual_pos": torch.rand(2, 5, config.visual_pos_dim),
    }


def _positions(side: int) -> Tensor:
    grid = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    return grid.expand(2, -1, -1).clone()


def _qformer(config: Any) -> Inputs:
    return {
        "query_embeds": torch.randn(2, 4, config.hidden_size),
        "encoder_hidden_states": torch.randn(2, 9, config.encoder_hidden_size),
    }


def _oneformer(config: Any) -> Inputs:
    return {
        "pixel_values": torch.randn(2, 3, 224, 224),
        "task_inputs": torch.randint(5, 60, (2, config.task_seq_len)),
    }


def _patches(config: Any) -> Inputs:
    """Two images of 4 x 4 patches, each patch of two frames in a row."""
    values = 2 * 3 * config.patch_size**2
    return {
        "pixel_values": torch.rand(32, values),
        "grid_thw": torch.tensor([[1, 4, 4], [1, 4, 4]]),
    }


def _kosmos2(config: Any) -> Inputs:
    places = torch.zeros(2, _TOKENS, dtype=torch.bool)
    places[:, 1 : 1 + config.latent_query_num] = True
    return {
        "pixel_values": torch.rand(2, 3, 32, 32),
        "input_ids": _ids(),
        "image_embeds_position_mask": places,
        "attention_mask": _ones(2, _TOKENS),
    }


_MAKERS: dict[str, Callable[[Any], Inputs]] = {
    "audioflamingo3_encoder": _audioflamingo3,
    "blip_2_qformer": _qformer,
    "clap": _clap,
    "decision_transformer": _decisions,
    "dia": _dia,
    "fun_asr_nano_encoder": lambda config: _heard(40, config.input_size, "input_features_mask"),
    "gemma3n_audio": lambda config: {
        "audio_mel": torch.randn(2, 40, config.input_feat_size),
        "audio_mel_mask": torch.zeros(2, 40, dtype=torch.bool),
    },
    "gemma4_audio": lambda config: _heard(40, 128, "attention_mask"),
    "gemma4_vision": lambda config: {
        "pixel_values": torch.rand(2, 36, 3 * config.patch_size**2),
        "pixel_position_ids": _positions(6),
    },
    "granite_speech5_ctc": lambda config: {"input_features": torch.randn(2, 40, 320)},
    "granite_speech5_encoder": lambda config: {"input_features": torch.randn(2, 40, 320)},
    "idefics": _idefics,
    "informer": _series,
    "kosmos-2": _kosmos2,
    "lxmert": _lxmert,
    "muse_glimmer_assistant": lambda config: {
        "noise_embeds": torch.randn(2, 8, config.hidden_size),
        "context_hidden_states": torch.randn(2, 8, 2 * config.hidden_size),
    },
    "muse_glimmer_vision": _patches,
    "muse_spark_audio": lambda config: {"input_values": torch.randn(2, 4800)},
    "muse_spark_vision": _patches,
    "nemotron3_5_transcribe_audio": lambda config: _heard(160, 80, "input_features_mask"),
    "nemotron3_5_transcribe_word_timestamp": lambda config: {
        "inputs_embeds": torch.randn(2, _TOKENS, config.hidden_size)
    },
    "oneformer": _oneformer,
    "perceiver": lambda config: {"inputs": torch.randn(2, _TOKENS, config.d_model)},
    "qwen3_asr_encoder": lambda config: {
        "input_features": torch.randn(2, config.num_mel_bins, 100),
        "input_features_mask": _ones(2, 100),
    },
    "time_series_transformer": _series,
}  # fmt: skip
