"""What the general rules of ``tiny`` get wrong about a model type, by its name in transformers."""

from __future__ import annotations

from typing import Any

_STAGES = {"out_features": ["stage2", "stage3", "stage4"]}
_HGNET = {
    **_STAGES,
    "stem_channels": [3, 16, 16],
    "stage_in_channels": [16, 64, 64, 64],
    "stage_mid_channels": [16, 16, 16, 16],
    "stage_out_channels": [64, 64, 64, 64],
    "hidden_sizes": [64, 64, 64, 64],
    "stage_num_blocks": [1, 1, 1, 1],
    "stage_numb_of_layers": [1, 1, 1, 1],
}
_LEVELS = {"encoder_in_channels": [64, 64, 64], "decoder_in_channels": [64, 64, 64]}
_CLVP_PART = {"hidden_size": 256, "projection_dim": 256}

OVERRIDES: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_types": ["linear_attention", "full_attention"], "head_dim": 16},
    "bamba": {"attn_layer_indices": [1]},
    "blip-2": {"image_token_index": 100, "num_query_tokens": 4},
    "blt": {
        "encoder_config": {"hidden_size_global": 64},
        "decoder_config": {"hidden_size_global": 64},
    },
    "chameleon": {"vocabulary_map": {"<image>": 100}},
    "clap": {"audio_config": {"hidden_size": 128}},
    "clvp": {
        "text_config": _CLVP_PART,
        "speech_config": _CLVP_PART,
        "decoder_config": {"hidden_size": 256},
        "projection_dim": 256,
    },
    "cohere_compass": {
        "text_config": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}}
    },
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}
    },
    "cvt": {"depth": [1, 2, 3]},
    "d_fine": {"backbone_config": _HGNET} | _LEVELS,
    "dbrx": {"attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8.0}},
    "deepseek_ocr2": {"text_config": {"mlp_layer_types": ["dense", "sparse"]}},
    "deimv2": {"backbone_config": _HGNET} | _LEVELS,
    "depth_pro": {"intermediate_hook_ids": [1, 0]},
    "diffusion_gemma": {
        "text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 64}
    },
    "emu3": {
        "vocabulary_map": {"<|extra_200|>": 99, "<image>": 100, "<|visual token 000000|>": 101}
    },
    "ernie4_5_vl_moe": {"text_config": {"rope_parameters": {"mrope_section": [3, 3, 2]}}},
    "granite4_vision": {"deepstack_layer_map": [[0, 0]], "spatial_target_layers": [1],
                        "downsample_rate": "1/2"},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "instructblip": {"image_token_index": 100, "num_query_tokens": 4},
    "instructblipvideo": {"video_token_index": 100, "num_query_tokens": 4},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {"num_experts_per_token": 2},
    "laguna": {"num_attention_heads_per_layer": [4, 4]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "longcat_flash": {"qk_head_dim": 32, "head_dim": 16},
    "lw_detr": {
        "backbone_config": {"num_hidden_layers": 4, "image_size": 64, "window_block_indices": [0, 2],
                            "out_features": ["stage2", "stage4"]},
        "projector_scale_factors": [1.0], "projector_out_channels": 64,
    },
    "mask2former": {"feature_size": 64, "mask_feature_size": 64, "hidden_dim": 64,
                    "backbone_config": {"out_features": ["stage1", "stage2", "stage3", "stage4"]}},
    "moonshine_streaming": {"num_key_value_heads": 4},
    "kosmos-2": {"latent_query_num": 4},
    "nemotron": {"num_key_value_heads": 2},
    "oneformer": {"backbone_config": {"out_features": ["stage1", "stage2", "stage3", "stage4"]}},
    "pp_doclayout_v3": {"backbone_config": _HGNET} | _LEVELS,
    "pp_doclayout_v4": {"backbone_config": _HGNET} | _LEVELS,
    "rt_detr": {"backbone_config": _STAGES, "decoder_in_channels": [64, 64, 64]},
    "rt_detr_v2": {"backbone_config": _STAGES, "decoder_in_channels": [64, 64, 64]},
}  # fmt: skip
