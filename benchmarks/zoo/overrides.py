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
_HGNET_4 = _HGNET | {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
_INTRACLASS = {f"{end}_channel": [1, 1, 0] for end in ("reduce", "return")} | {
    f"{conv}_{ratio}ratio": [[high, wide], [1, 1], [high // 2, wide // 2]]
    for ratio, size in (("long", 7), ("mid", 5), ("short", 3))
    for conv, high, wide in (
        ("vertical_long_to_small_conv", size, 1),
        ("horizontal_small_to_long_conv", 1, size),
        ("symmetric_conv_long", size, size),
    )
}
_LCNET = {
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
    "block_configs": [
        [[3, 96, 96, 1, True]],
        [[3, 96, 96, 2, False]],
        [[3, 96, 192, 2, False]],
        [[3, 192, 384, 2, False]],
    ],
    "stage_out_channels": [96, 96, 192, 384],
}
_INDEXER = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 8,
    "indexer_compress_ratio": 4,
}
_REPVIT = {
    "architecture": "repvit_m1",
    "model_args": {"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]},
}
_PE_EYES = {
    "architecture": "vit_pe_core_tiny_patch16_384",
    "model_args": {"depth": 2, "img_size": (32, 32)},
}
_HIERA = {
    "hidden_size": 32,
    "image_size": [64, 64],
    "embed_dim_per_stage": [32, 64, 128, 256],
    "blocks_per_stage": [1, 1, 2, 1],
    "global_attention_blocks": [3],
}
_SIZES = [[16, 16], [8, 8], [4, 4]]
_SAM2_EYES = {
    "backbone_config": _HIERA,
    "backbone_channel_list": [256, 128, 64, 32],
    "backbone_feature_sizes": _SIZES,
}
_PROMPTS = {"image_size": 64, "patch_size": 16}
_CLVP_PART = {"hidden_size": 256, "projection_dim": 256}

OVERRIDES: dict[str, dict[str, Any]] = {
    "autoformer": {"label_length": 4},
    "bailing_hybrid": {"layer_types": ["linear_attention", "full_attention"], "head_dim": 16},
    "bamba": {"attn_layer_indices": [1]},
    "beit:segmentation": {"num_hidden_layers": 4, "out_indices": [1, 2, 3, 4]},
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
    "data2vec-vision:segmentation": {"num_hidden_layers": 4, "out_indices": [1, 2, 3, 4], "pool_scales": [1, 2, 3, 6]},
    "dbrx": {"attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8.0}},
    "deepseek_ocr2": {"text_config": {"mlp_layer_types": ["dense", "sparse"]}},
    "deimv2": {"backbone_config": _HGNET} | _LEVELS,
    "depth_pro": {"intermediate_hook_ids": [1, 0]},
    "diffusion_gemma": {
        "text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 64}
    },
    "dpt:segmentation": {"num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3], "is_hybrid": False},
    "edgetam": {
        "vision_config": {"backbone_config": _REPVIT, "backbone_feature_sizes": _SIZES},
        "prompt_encoder_config": _PROMPTS,
    },
    "edgetam_vision_model": {"backbone_config": _REPVIT},
    "emu3": {
        "vocabulary_map": {"<|extra_200|>": 99, "<image>": 100, "<|visual token 000000|>": 101}
    },
    "ernie4_5_vl_moe": {"text_config": {"rope_parameters": {"mrope_section": [3, 3, 2]}}},
    "gemma4_assistant:causal-lm": {
        "text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0,
                        "use_double_wide_mlp": False},
        "backbone_hidden_size": 64,
    },
    "gemma4_unified_assistant:causal-lm": {
        "backbone_hidden_size": 64,
        "text_config": {"num_hidden_layers": 4, "num_kv_shared_layers": 2,
                        "layer_types": ["sliding_attention", "full_attention"] * 2},
    },
    "granite4_vision": {"deepstack_layer_map": [[0, 0]], "spatial_target_layers": [1],
                        "downsample_rate": "1/2"},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "instructblip": {"image_token_index": 100, "num_query_tokens": 4},
    "instructblipvideo": {"video_token_index": 100, "num_query_tokens": 4},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {"num_experts_per_token": 2},
    "kosmos-2": {"latent_query_num": 4},
    "laguna": {"num_attention_heads_per_layer": [4, 4]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "longcat_flash": {"qk_head_dim": 32, "head_dim": 16},
    "lw_detr": {
        "backbone_config": {"num_hidden_layers": 4, "image_size": 64, "window_block_indices": [0, 2],
                            "out_features": ["stage2", "stage4"]},
        "projector_scale_factors": [1.0], "projector_out_channels": 64, "projector_in_channels": [64],
        "num_feature_levels": 1,
    },
    "mask2former": {"feature_size": 64, "mask_feature_size": 64, "hidden_dim": 64,
                    "backbone_config": {"out_features": ["stage1", "stage2", "stage3", "stage4"]}},
    "molmo2": {
        "adapter_config": {"vision_feature_layer": [1, 0]}, "image_patch_id": 100,
        "vision_config": {"num_position_embeddings": 16},
    },
    "moonshine_streaming": {"num_key_value_heads": 4},
    "nemo_speechlm": {"text_config": {"n_groups": 2}},
    "nemotron": {"num_key_value_heads": 2},
    "neucodec": {"semantic_model_config": {"feature_projection_input_dim": 160}, "quantization_dim": 128},
    "omdet-turbo": {
        "encoder_in_channels": [192, 384, 768], "vision_features_channels": [128, 128, 128],
        "backbone_config": {"out_indices": [1, 2, 3]}, "d_model": 128, "encoder_hidden_dim": 128,
        "decoder_hidden_dim": 128,
    },
    "oneformer": {"backbone_config": {"out_features": ["stage1", "stage2", "stage3", "stage4"]}},
    "pe_audio_video": {"audio_video_config": {"video_config": {"vision_config": _PE_EYES}}},
    "pe_audio_video_encoder": {"video_config": {"vision_config": _PE_EYES}},
    "pe_video": {"video_config": {"vision_config": _PE_EYES}},
    "pe_video_encoder": {"vision_config": _PE_EYES},
    "perceiver:image": {"d_model": 512, "image_size": 32},
    "perception_lm": {"vision_config": {"architecture": "vit_pe_core_tiny_patch16_384",
                      "model_args": {"embed_dim": 64, "depth": 2, "img_size": (32, 32), "num_heads": 4,
                                     "global_pool": ""}}},
    "pocket_tts_audio_tokenizer": {"upsample_groups": 64},
    "pocket_tts_audio_tokenizer_decoder": {"upsample_groups": 64},
    "pp_doclayout_v2:detection": {
        "backbone_config": _HGNET, "class_thresholds": [0.5, 0.5], "class_order": [0, 1], "num_labels": 2,
    } | _LEVELS,
    "pp_doclayout_v3": {"backbone_config": _HGNET_4, "x4_feat_dim": 64} | _LEVELS,
    "pp_doclayout_v4": {"backbone_config": _HGNET} | _LEVELS,
    "pp_ocrv5_mobile_det:detection": {"backbone_config": {"out_features": ["stage2", "stage3", "stage4", "stage5"]}},
    "pp_ocrv5_server_det:detection": {
        "backbone_config": _HGNET_4, "intraclass_block_config": _INTRACLASS,
        "kernel_list": [3, 2, 2], "scale_factor_list": [1, 2, 4, 8],
    },
    "pp_ocrv6_medium_det": {
        "backbone_config": _LCNET, "intraclass_block_config": _INTRACLASS,
        "kernel_list": [3, 2, 2], "scale_factor_list": [1, 2, 4, 8],
    },
    "pp_ocrv6_small_det": {"backbone_config": _LCNET, "layer_list_out_channels": [96, 96, 192, 384]},
    "qwen2_5_omni_thinker": {"vision_start_token_id": 90},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 90},
    "qwen4_exp:causal-lm": {"text_config": _INDEXER},
    "reformer": {"axial_pos_embds_dim": [32, 32]},
    "reformer:causal-lm": {"is_decoder": True, "axial_pos_embds_dim": [32, 32]},
    "rt_detr": {"backbone_config": _STAGES, "decoder_in_channels": [64, 64, 64]},
    "rt_detr_v2": {"backbone_config": _STAGES, "decoder_in_channels": [64, 64, 64]},
    "sam2": {"vision_config": _SAM2_EYES, "prompt_encoder_config": _PROMPTS},
    "sam2_hiera_det_model": _HIERA,
    "sam2_vision_model": _SAM2_EYES,
    "sam3_tracker": {
        "vision_config": {"backbone_feature_sizes": _SIZES},
        "prompt_encoder_config": {"image_size": 32, "patch_size": 8},
    },
    "sam_hq": {
        "prompt_encoder_config": {"image_embedding_size": 4},
        "vision_config": {"num_pos_feats": 32, "global_attn_indexes": [1]},
    },
    "sapiens2:segmentation": {
        "head_config": {"upsample_out_channels": [32, 32], "conv_out_channels": [32]},
    },
    "shieldgemma2:image": {"mm_tokens_per_image": 4, "yes_token_index": 90, "no_token_index": 91},
    "step3p7": {"text_config": {"sliding_window": 8}},
    "t5gemma2_encoder": {"text_config": {"dropout_rate": 0.0, "attn_logit_softcapping": None}},
    "t5gemma:sequence": {"is_encoder_decoder": False},
    "timesfm2_5": {"context_length": 128},
    "timm_backbone": {
        "backbone": "vit_tiny_patch16_224", "features_only": True, "use_pretrained_backbone": False, "out_indices": [1],
    },
    "tipsv2_dpt:segmentation": {
        "backbone_config": {"num_hidden_layers": 4, "out_indices": [1, 2, 3, 4], "reshape_hidden_states": False},
    },
    "tvp": {
        "max_img_size": 64, "visual_prompt_size": 8, "num_frames": 2,
        "backbone_config": {"out_features": ["stage4"]},
    },
    "upernet:segmentation": {"backbone_config": {"out_features": ["stage1", "stage2", "stage3", "stage4"]}},
    "uvdoc": {"backbone_config": {"out_features": [f"stage{i}" for i in range(1, 7)]}},
    "vjepa2": {"frames_per_clip": 4, "crop_size": 32},
    "xcodec2": {"semantic_model_config": {"feature_projection_input_dim": 160}, "quantization_dim": 128},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"], "num_hidden_layers": 3,
        "attention_hidden_size": 128, "attention_head_dim": 32,
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"], "num_hidden_layers": 3,
        "hybrid_layer_ids": [1, 2], "attention_hidden_size": 128, "attention_head_dim": 32,
    },
}  # fmt: skip
