"""Small configurations, made by one set of rules for every model type.

A configuration is turned into plain data, its numbers are made small by what their names say, and
it is built again, so that everything it derives from its numbers is derived anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

WIDTH, HEADS, HEAD, FFN, LAYERS, VOCABULARY = 64, 4, 16, 128, 2, 128
_DROPPED = {"transformers_version", "model_type", "layer_types", "mlp_layer_types", "dtype",
            "architectures", "mlp_only_layers", "no_rope_layers", "attention_types",
            "attention_layers", "_name_or_path", "layers_block_type", "indexer_types"}  # fmt: skip

Rule = Callable[[int], int]


def _at_most(limit: int) -> Rule:
    return lambda value: min(value, limit)


_RULES: tuple[tuple[str, Rule], ...] = (
    (r"vocab_size|vocab_size_per_layer_input|num_embeddings|codebook_size", _at_most(VOCABULARY)),
    (r"(num_)?(key_value|kv)_heads|num_key_value_heads|n_head_kv|.*_kv_heads|.*key_value_heads",
     lambda value: 1 if value == 1 else 2 if value < 8 else HEADS),
    (r".*(attention_heads|_heads|n_head|num_heads|heads)", lambda value: HEADS if value > 1 else 1),
    (r".*head_dim|d_kv|attention_head_size|head_size|attention_head_dim|global_head_dim"
     r"|d_head|qk_.*head_dim|v_head_dim", lambda value: HEAD if value >= HEAD else value),
    (r"rotary_dim", _at_most(HEAD)),
    (r".*(intermediate_size|ffn_dim|ffn_size|d_ff|d_inner|n_inner|ff_dim|mlp_dim|intermediate_dim)",
     _at_most(FFN)),
    (r".*(num_|n_|_|^)(hidden_)?layers?|depth|.*_depth|num_blocks|.*_layers|n_layer", _at_most(LAYERS)),
    (r".*experts_per_tok|.*top_k|moe_k|moe_topk|num_selected_experts", _at_most(2)),
    (r"n_group|topk_group|num_expert_group", _at_most(1)),
    (r".*(num|n)_.*experts|num_experts|n_shared_experts|moe_num_experts", _at_most(4)),
    (r"max_position_embeddings|n_positions|max_sequence_length", _at_most(512)),
    (r"(.*_)?image_size|img_size|input_size", lambda value: 32 if value >= 32 else value),
    (r".*patch_size", lambda value: 8 if value >= 8 else value),
    (r".*(lora_rank|low_rank_dim)", _at_most(16)),
    (r"max_source_positions|max_target_positions", _at_most(64)),
    (r"num_mel_bins|feature_size|input_feat_per_channel", _at_most(80)),
    (r"num_queries|.*num_queries|num_latents|num_query_tokens", _at_most(10)),
    (r".*(hidden_size|d_model|n_embd|embed_dim|embedding_size|embedding_dim|hidden_dim|_dim|_size"
     r"|^dim|_width|width|_channels|channels|d_latents)",
     lambda value: WIDTH if value >= WIDTH else value),
)  # fmt: skip
_COMPILED = tuple((re.compile(pattern), rule) for pattern, rule in _RULES)
_WIDTHS = re.compile(r".*(sizes|dims|dim|channels|channel|widths|embed_dims?)")
_DEPTHS = re.compile(r".*(depths?|layers?|blocks|repeats)")
_HEADS = re.compile(r".*heads")
_TOKEN = re.compile(r".*(token_id|token_index|_token|bos|eos)(_id)?s?")


def tiny(config: Any) -> Any:
    """The same kind of configuration, small enough for one core and one second."""
    return type(config)(**shrink(config.to_dict()))


def shrink(data: dict[str, Any]) -> dict[str, Any]:
    """Numbers made small, derived lists left out so that the configuration derives them again."""
    tokens = _Tokens()
    return {key: _value(key, value, tokens) for key, value in data.items() if key not in _DROPPED}


class _Tokens:
    """Numbers of special tokens, counted down from the end of the small vocabulary."""

    def __init__(self) -> None:
        self.next = VOCABULARY - 1

    def small(self, value: int) -> int:
        if value < VOCABULARY - 32:
            return value
        self.next -= 1
        return self.next


def _value(key: str, value: Any, tokens: _Tokens) -> Any:
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, dict):
        return _rope(value) if "rope" in key else shrink(value) | _kept(value)
    if isinstance(value, int):
        return tokens.small(value) if _TOKEN.fullmatch(key) else _number(key, value)
    if isinstance(value, list | tuple) and value and all(type(v) is int for v in value):
        return type(value)(_numbers(key, list(value)))
    return value


def _kept(value: dict[str, Any]) -> dict[str, Any]:
    """A sub-configuration needs its type to be built again."""
    return {"model_type": value["model_type"]} if "model_type" in value else {}


def _number(key: str, value: int) -> int:
    for pattern, rule in _COMPILED:
        if pattern.fullmatch(key):
            return rule(value)
    return value


def _numbers(key: str, values: list[int]) -> list[int]:
    least = max(min(values), 1)
    if _HEADS.fullmatch(key):
        return [max(1, v // least) for v in values]
    if _DEPTHS.fullmatch(key):
        return [min(v, LAYERS) for v in values]
    if "image_size" in key or "patch_size" in key:
        return [_number("image_size" if "image" in key else "patch_size", v) for v in values]
    if _WIDTHS.fullmatch(key) and least >= 32:
        return [v * 32 // least for v in values]
    return values


def _rope(value: dict[str, Any]) -> dict[str, Any]:
    """Rotary sections sum to half a head."""
    if "mrope_section" not in value:
        return value
    half = HEAD // 2
    return value | {"mrope_section": [half - 2 * (half // 3), half // 3, half // 3]}
