"""Images, clips and what goes with them, for model types that do not say enough."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.zoo.input_parts import TOKENS, Inputs, Makers, clip, ids, ones, with_tokens


def _idefics(config: Any) -> Inputs:
    side = config.vision_config.image_size
    return {
        "input_ids": ids(),
        "attention_mask": ones(2, TOKENS),
        "pixel_values": torch.randn(2, 1, 3, side, side),
        "image_attention_mask": ones(2, TOKENS, 1),
    }


def _lxmert(config: Any) -> Inputs:
    return {
        "input_ids": ids(),
        "visual_feats": torch.randn(2, 5, config.visual_feat_dim),
        "visual_pos": torch.rand(2, 5, config.visual_pos_dim),
    }


def _positions(side: int) -> Tensor:
    grid = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    return grid.expand(2, -1, -1).clone()


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
    places = torch.zeros(2, TOKENS, dtype=torch.bool)
    places[:, 1 : 1 + config.latent_query_num] = True
    return {
        "pixel_values": torch.rand(2, 3, 32, 32),
        "input_ids": ids(),
        "image_embeds_position_mask": places,
        "attention_mask": ones(2, TOKENS),
    }


def _pi0(config: Any) -> Inputs:
    """One camera's image, a few words, and the embedded actions."""
    eyes = config.vlm_config.vision_config
    count = (eyes.image_size // eyes.patch_size) ** 2
    return {
        "input_ids": with_tokens(config.vlm_config.image_token_id, count),
        "attention_mask": ones(2, 32),
        "pixel_values": torch.rand(2, 1, 3, eyes.image_size, eyes.image_size),
        "pixel_attention_mask": ones(2, 1).bool(),
        "action_embeds": torch.randn(2, 6, config.dit_config.hidden_size),
    }


def _omdet(config: Any) -> Inputs:
    return {
        "pixel_values": torch.rand(2, 3, config.image_size, config.image_size),
        "classes_input_ids": torch.randint(5, 60, (4, 8)),
        "classes_attention_mask": ones(4, 8),
        "tasks_input_ids": torch.randint(5, 60, (2, 8)),
        "tasks_attention_mask": ones(2, 8),
        "classes_structure": torch.tensor([2, 2]),
    }


def _seggpt(config: Any) -> Inputs:
    """Prompt and image lie above each other: an image is twice as high as wide."""
    high, wide = config.image_size if isinstance(config.image_size, list | tuple) else (64, 32)
    image = (2, 3, high // 2, wide)
    return {
        name: torch.rand(image) for name in ("pixel_values", "prompt_pixel_values", "prompt_masks")
    }


def _flat_patches(config: Any) -> Inputs:
    return {
        "pixel_values": torch.rand(2, 16, 3 * config.patch_size**2),
        "pixel_attention_mask": ones(2, 16),
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
        "input_ids": with_tokens(config.image_token_id, len(pooled) // 2),
        "attention_mask": ones(2, 32),
        "pixel_values": torch.rand(2, grid**2, values),
        "image_token_pooling": pooled,
        "image_grids": torch.tensor([[0, 0, grid // 2, grid // 2]] * 2),
        "image_num_crops": ones(2),
    }


IMAGES: Makers = {
    "edgetam": lambda config: {"pixel_values": torch.rand(2, 3, 64, 64)},
    "gemma4_vision": lambda config: {
        "pixel_values": torch.rand(2, 36, 3 * config.patch_size**2),
        "pixel_position_ids": _positions(6),
    },
    "idefics": _idefics,
    "inkling2_vision": lambda config: {
        "pixel_values": torch.rand(8, 2 * config.patch_size, 2 * config.patch_size, 3),
        "image_grid_thw": torch.tensor([[1, 2, 2], [1, 2, 2]]),
    },
    "kimi_k25_vision": lambda config: {
        "pixel_values": torch.rand(32, 3, config.patch_size, config.patch_size),
        "grid_thw": torch.tensor([[1, 4, 4], [1, 4, 4]]),
    },
    "kosmos-2": _kosmos2,
    "lxmert": _lxmert,
    "minicpm_ocr_vision": _strip,
    "minicpmv4_7_vision": _strip,
    "molmo2": _molmo2,
    "muse_glimmer_vision": _patches,
    "muse_spark_vision": _patches,
    "omdet-turbo": _omdet,
    "oneformer": _oneformer,
    "pe_video": lambda config: {
        "input_ids": ids(),
        "attention_mask": ones(2, TOKENS),
        "pixel_values_videos": clip(),
    },
    "pe_video_encoder": lambda config: {"pixel_values_videos": clip()},
    "perceiver:image": lambda config: {"pixel_values": torch.rand(2, 3, 32, 32)},
    "pi0": _pi0,
    "sam2": lambda config: {"pixel_values": torch.rand(2, 3, 64, 64)},
    "seggpt": _seggpt,
    "shieldgemma2:image": lambda config: {
        "input_ids": with_tokens(config.image_token_id, 4),
        "attention_mask": ones(2, 32),
        "pixel_values": torch.rand(2, 3, 32, 32),
        "token_type_ids": (with_tokens(config.image_token_id, 4) == config.image_token_id).long(),
    },
    "siglip2": lambda config: {"input_ids": ids(), **_flat_patches(config.vision_config)},
    "siglip2:image": lambda config: _flat_patches(config.vision_config),
    "siglip2_vision_model": _flat_patches,
    "tvp": lambda config: {
        "input_ids": ids()[:1],
        "attention_mask": ones(1, TOKENS),
        "pixel_values": torch.rand(1, 2, 3, 64, 64),  # its column positions fit a batch of one alone
    },
    "video_llama_3_vision": lambda config: {
        "pixel_values": torch.rand(32, 3 * config.patch_size**2),
        "grid_thw": torch.tensor([[1, 4, 4], [1, 4, 4]]),
        "merge_sizes": torch.tensor([2, 2]),
    },
}  # fmt: skip
