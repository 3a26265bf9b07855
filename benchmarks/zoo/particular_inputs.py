"""Example inputs of model types whose configurations do not say enough, by their names in transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Inputs = dict[str, Any]
_TOKENS = 16


def particular_inputs(name: str, config: Any) -> Inputs | None:
    """Inputs for a model of this type, or with this head; None where the configuration tells enough."""
    make = _MAKERS.get(name, _MAKERS.get(name.partition(":")[0]))
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


def _image_tokens(config: Any, count: int, length: int = 32) -> Tensor:
    """Text in which ``count`` tokens stand for an image."""
    tokens = _ids(length)
    tokens[:, 1 : 1 + count] = config.image_token_id
    return tokens


def _pi0(config: Any) -> Inputs:
    """One camera's image, a few words, and the embedded actions."""
    eyes = config.vlm_config.vision_config
    count = (eyes.image_size // eyes.patch_size) ** 2
    return {
        "input_ids": _image_tokens(config.vlm_config, count),
        "attention_mask": _ones(2, 32),
        "pixel_values": torch.rand(2, 1, 3, eyes.image_size, eyes.image_size),
        "pixel_attention_mask": _ones(2, 1).bool(),
        "action_embeds": torch.randn(2, 6, config.dit_config.hidden_size),
    }


def _omdet(config: Any) -> Inputs:
    return {
        "pixel_values": torch.rand(2, 3, config.image_size, config.image_size),
        "classes_input_ids": torch.randint(5, 60, (4, 8)),
        "classes_attention_mask": _ones(4, 8),
        "tasks_input_ids": torch.randint(5, 60, (2, 8)),
        "tasks_attention_mask": _ones(2, 8),
        "classes_structure": torch.tensor([2, 2]),
    }


def _seggpt(config: Any) -> Inputs:
    """Prompt and image lie above each other: an image is twice as high as wide."""
    high, wide = config.image_size if isinstance(config.image_size, list | tuple) else (64, 32)
    image = (2, 3, high // 2, wide)
    return {name: torch.rand(image) for name in ("pixel_values", "prompt_pixel_values", "prompt_masks")}


def _flat_patches(config: Any) -> Inputs:
    return {
        "pixel_values": torch.rand(2, 16, 3 * config.patch_size**2),
        "pixel_attention_mask": _ones(2, 16),
        "spatial_shapes": torch.tensor([[4, 4], [4, 4]]),
    }


def _strip(config: Any) -> Inputs:
    """Two images of 4 x 4 patches, all patches of both in one row."""
    return {
        "pixel_values": torch.rand(1, 3, config.patch_size, 32 * config.patch_size),
        "target_sizes": torch.tensor([[4, 4], [4, 4]]),
    }


def _molmo2(config: Any) -> Inputs:
    """One crop an image, 2 x 2 patches pooled for each token."""
    side = config.vision_config.image_size[0]
    grid = side // config.vision_config.patch_size
    patches = torch.arange(2 * grid**2).reshape(2, grid // 2, 2, grid // 2, 2)
    pooled = patches.transpose(2, 3).reshape(-1, 4)
    values = 3 * config.vision_config.patch_size**2
    return {
        "input_ids": _image_tokens(config, len(pooled) // 2),
        "attention_mask": _ones(2, 32),
        "pixel_values": torch.rand(2, grid**2, values),
        "image_token_pooling": pooled,
        "image_grids": torch.tensor([[0, 0, grid // 2, grid // 2]] * 2),
        "image_num_crops": _ones(2),
    }


def _musicgen(config: Any) -> Inputs:
    return {
        "input_ids": torch.randint(5, 60, (2 * config.num_codebooks, 8)),
        "encoder_hidden_states": torch.randn(2, 6, config.hidden_size),
    }


def _codec(config: Any) -> Inputs:
    """A waveform, and its spectrum for the part that hears words."""
    bins = config.semantic_model_config.feature_projection_input_dim
    return {"input_values": torch.randn(2, 1, 3200), "input_features": torch.randn(2, 10, bins)}


def _sound_tokens(config: Any, count: int, length: int = 32) -> Tensor:
    """Text in which ``count`` tokens stand for sound."""
    tokens = _ids(length)
    tokens[:, 1 : 1 + count] = config.audio_token_id
    return tokens


def _omni(config: Any, count: int) -> Inputs:
    """Text with 40 frames of sound, of which ``count`` features are made."""
    return {
        "input_ids": _sound_tokens(config, count),
        "attention_mask": _ones(2, 32),
        "input_features": torch.randn(2, config.audio_config.num_mel_bins, 40),
        "feature_attention_mask": _ones(2, 40),
    }


def _clip(config: Any) -> Tensor:
    return torch.rand(2, 2, 3, 32, 32)


def _borrowed_states(config: Any) -> Inputs:
    """Keys and values of the large model whose tokens the assistant guesses."""
    text = config.get_text_config()
    states = {}
    for layer, kind in enumerate(text.layer_types):
        own = text.per_layer_config[layer]
        shape = (2, own.num_key_value_heads, 8, own.head_dim)
        states[kind] = (torch.randn(shape), torch.randn(shape))
    return {
        "inputs_embeds": torch.randn(2, 4, 2 * config.backbone_hidden_size),
        "position_ids": torch.arange(4, 8).expand(2, -1).clone(),
        "shared_kv_states": states,
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
        "attention_mask": _ones(2, 16),
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
    "autoformer": _series,
    "inkling2_vision": lambda config: {
        "pixel_values": torch.rand(8, 2 * config.patch_size, 2 * config.patch_size, 3),
        "image_grid_thw": torch.tensor([[1, 2, 2], [1, 2, 2]]),
    },
    "kimi_k25_vision": lambda config: {
        "pixel_values": torch.rand(32, 3, config.patch_size, config.patch_size),
        "grid_thw": torch.tensor([[1, 4, 4], [1, 4, 4]]),
    },
    "kyutai_speech_to_text": lambda config: {
        "input_ids": torch.randint(5, 60, (2, _TOKENS, config.num_codebooks + 1)),
        "attention_mask": _ones(2, _TOKENS),
    },
    "mimi_encoder": lambda config: {"input_values": torch.randn(2, 1, 3840)},
    "minicpm_ocr_vision": _strip,
    "minicpmv4_7_vision": _strip,
    "molmo2": _molmo2,
    "musicgen": _musicgen,
    "musicgen_melody": _musicgen,
    "nemo_speechlm": lambda config: {
        "input_ids": _sound_tokens(config, 20),
        **_heard(160, 80, "input_features_mask"),
    },
    "neucodec": _codec,
    "xcodec2": _codec,
    "omdet-turbo": _omdet,
    "pe_audio_video_encoder": lambda config: {
        "input_values": torch.randn(2, 1, 5120),
        "pixel_values_videos": _clip(config),
    },
    "pe_video": lambda config: {
        "input_ids": _ids(),
        "attention_mask": _ones(2, _TOKENS),
        "pixel_values_videos": _clip(config),
    },
    "pe_video_encoder": lambda config: {"pixel_values_videos": _clip(config)},
    "perceiver:image": lambda config: {"pixel_values": torch.rand(2, 3, 32, 32)},
    "perceiver:sequence": lambda config: {"inputs": _ids()},
    "pi0": _pi0,
    "pocket_tts_audio_tokenizer": lambda config: {"input_values": torch.randn(2, 1, 3840)},
    "pocket_tts_audio_tokenizer_encoder": lambda config: {"input_values": torch.randn(2, 1, 3840)},
    "qwen2_5_omni_thinker": lambda config: _omni(config, 10),
    "qwen3_omni_moe_thinker": lambda config: _omni(config, 5),
    "seggpt": _seggpt,
    "siglip2": lambda config: {"input_ids": _ids(), **_flat_patches(config.vision_config)},
    "siglip2:image": lambda config: _flat_patches(config.vision_config),
    "siglip2_vision_model": _flat_patches,
    "speecht5": lambda config: {
        "input_values": torch.randn(2, _TOKENS, config.hidden_size),
        "decoder_input_values": torch.randn(2, 8, config.hidden_size),
    },
    "timesfm": lambda config: {
        "past_values": torch.rand(2, 4 * config.patch_length),
        "past_values_padding": torch.zeros(2, 4 * config.patch_length),
        "freq": torch.zeros(2, 1, dtype=torch.long),
    },
    "tvp": lambda config: {
        "input_ids": _ids()[:1],
        "attention_mask": _ones(1, _TOKENS),
        "pixel_values": torch.rand(1, 2, 3, 64, 64),  # its column positions fit a batch of one alone
    },
    "vibevoice_acoustic_tokenizer_encoder": lambda config: {"hidden_states": torch.randn(2, 1, 3200)},
    "video_llama_3_vision": lambda config: {
        "pixel_values": torch.rand(32, 3 * config.patch_size**2),
        "grid_thw": torch.tensor([[1, 4, 4], [1, 4, 4]]),
        "merge_sizes": torch.tensor([2, 2]),
    },
    "voxtral_realtime": lambda config: {
        "input_ids": _ids(8),
        "input_features": torch.randn(2, config.audio_config.num_mel_bins, 64),
        "num_delay_tokens": 2,
    },
    "sam2": lambda config: {"pixel_values": torch.rand(2, 3, 64, 64)},
    "edgetam": lambda config: {"pixel_values": torch.rand(2, 3, 64, 64)},
    "shieldgemma2:image": lambda config: {
        "input_ids": _image_tokens(config, 4),
        "attention_mask": _ones(2, 32),
        "pixel_values": torch.rand(2, 3, 32, 32),
        "token_type_ids": (_image_tokens(config, 4) == config.image_token_id).long(),
    },
    "gemma4_assistant:causal-lm": _borrowed_states,
    "gemma4_unified_assistant:causal-lm": _borrowed_states,
    "rwkv:causal-lm": lambda config: {"input_ids": _ids(4)},
    "vibevoice_acoustic_tokenizer": lambda config: {"input_values": torch.randn(2, 1, 3200)},
    "vibevoice_acoustic_tokenizer_decoder": lambda config: {"hidden_states": torch.randn(2, config.hidden_size, 1)},
    "voxtral_realtime_text": lambda config: {
        "input_ids": _ids(),
        "attention_mask": _ones(2, _TOKENS),
        "t_cond": torch.randn(2, 1, config.hidden_size),
    },
}  # fmt: skip
