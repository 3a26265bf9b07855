"""Waves, spectra and what goes with them, for model types that do not say enough."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.zoo.input_parts import TOKENS, Inputs, Makers, clip, ids, ones, with_tokens


def _heard(frames: int, bins: int, mask: str) -> Inputs:
    """A spectrogram, bins last, and the mask that goes with it."""
    return {"input_features": torch.randn(2, frames, bins), mask: ones(2, frames).bool()}


def _audioflamingo3(config: Any) -> Inputs:
    frames = 2 * config.max_source_positions
    return {
        "input_features": torch.randn(2, config.num_mel_bins, frames),
        "input_features_mask": ones(2, frames),
    }


def _clap(config: Any) -> Inputs:
    audio = config.audio_config
    sound = torch.randn(2, 1, audio.spec_size, audio.num_mel_bins)
    return {"input_ids": ids(), "attention_mask": ones(2, TOKENS), "input_features": sound}


def _dia(config: Any) -> Inputs:
    channels = config.decoder_config.num_channels
    return {
        "input_ids": ids(),
        "attention_mask": ones(2, TOKENS),
        "decoder_input_ids": torch.randint(5, 60, (2, 8, channels)),
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


def _omni(config: Any, count: int) -> Inputs:
    """Text with 40 frames of sound, of which ``count`` features are made."""
    return {
        "input_ids": with_tokens(config.audio_token_id, count),
        "attention_mask": ones(2, 32),
        "input_features": torch.randn(2, config.audio_config.num_mel_bins, 40),
        "feature_attention_mask": ones(2, 40),
    }


SOUNDS: Makers = {
    "audioflamingo3_encoder": _audioflamingo3,
    "clap": _clap,
    "dia": _dia,
    "fun_asr_nano_encoder": lambda config: _heard(40, config.input_size, "input_features_mask"),
    "gemma3n_audio": lambda config: {
        "audio_mel": torch.randn(2, 40, config.input_feat_size),
        "audio_mel_mask": torch.zeros(2, 40, dtype=torch.bool),
    },
    "gemma4_audio": lambda config: _heard(40, 128, "attention_mask"),
    "granite_speech5_ctc": lambda config: {"input_features": torch.randn(2, 40, 320)},
    "granite_speech5_encoder": lambda config: {"input_features": torch.randn(2, 40, 320)},
    "kyutai_speech_to_text": lambda config: {
        "input_ids": torch.randint(5, 60, (2, TOKENS, config.num_codebooks + 1)),
        "attention_mask": ones(2, TOKENS),
    },
    "mimi_encoder": lambda config: {"input_values": torch.randn(2, 1, 3840)},
    "muse_spark_audio": lambda config: {"input_values": torch.randn(2, 4800)},
    "musicgen": _musicgen,
    "musicgen_melody": _musicgen,
    "nemo_speechlm": lambda config: {
        "input_ids": with_tokens(config.audio_token_id, 20),
        **_heard(160, 80, "input_features_mask"),
    },
    "nemotron3_5_transcribe_audio": lambda config: _heard(160, 80, "input_features_mask"),
    "nemotron3_5_transcribe_word_timestamp": lambda config: {
        "inputs_embeds": torch.randn(2, TOKENS, config.hidden_size)
    },
    "neucodec": _codec,
    "pe_audio_video_encoder": lambda config: {
        "input_values": torch.randn(2, 1, 5120),
        "pixel_values_videos": clip(),
    },
    "pocket_tts_audio_tokenizer": lambda config: {"input_values": torch.randn(2, 1, 3840)},
    "pocket_tts_audio_tokenizer_encoder": lambda config: {"input_values": torch.randn(2, 1, 3840)},
    "qwen2_5_omni_thinker": lambda config: _omni(config, 10),
    "qwen3_asr_encoder": lambda config: {
        "input_features": torch.randn(2, config.num_mel_bins, 100),
        "input_features_mask": ones(2, 100),
    },
    "qwen3_omni_moe_thinker": lambda config: _omni(config, 5),
    "speecht5": lambda config: {
        "input_values": torch.randn(2, TOKENS, config.hidden_size),
        "decoder_input_values": torch.randn(2, 8, config.hidden_size),
    },
    "vibevoice_acoustic_tokenizer": lambda config: {"input_values": torch.randn(2, 1, 3200)},
    "vibevoice_acoustic_tokenizer_decoder": lambda config: {"hidden_states": torch.randn(2, config.hidden_size, 1)},
    "vibevoice_acoustic_tokenizer_encoder": lambda config: {"hidden_states": torch.randn(2, 1, 3200)},
    "voxtral_realtime": lambda config: {
        "input_ids": ids(8),
        "input_features": torch.randn(2, config.audio_config.num_mel_bins, 64),
        "num_delay_tokens": 2,
    },
    "voxtral_realtime_text": lambda config: {
        "input_ids": ids(),
        "attention_mask": ones(2, TOKENS),
        "t_cond": torch.randn(2, 1, config.hidden_size),
    },
    "xcodec2": _codec,
}  # fmt: skip
