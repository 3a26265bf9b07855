"""Small configurations, made by one set of rules for every model type.

A configuration is turned into plain data, its numbers are made small by what their names say, and
it is built again, so that everything it derives from its numbers is derived anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

WIDTH, HEADS, HEAD, FFN, LAYERS, VOCABULARY = 64, 4, 16, 128, 2, 128
_DROPPED = {"transformers_version", "model_type", "dtype", "architectures", "mlp_only_layers",
            "attention_layers", "_name_or_path", "per_layer_config", "out_features", "out_indices",
            "_out_features", "_out_indices", "stage_names"}  # fmt: skip
_KINDS = ("layer_types", "mlp_layer_types", "layers_block_type", "indexer_types", "no_rope_layers")

Rule = Callable[[int], int]
Rules = tuple[tuple[re.Pattern[str], Rule], ...]


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
    (r"mamba_(d_head|head_dim|headdim)", _at_most(2 * WIDTH // HEADS)),
    (r"num_kv_shared_layers", _at_most(0)),
    (r"(?!num_feat_extract)(.*(num_|n_|_|^)(hidden_)?layers?|depth|.*_depth|num_blocks|.*_layers"
     r"|n_layer)", _at_most(LAYERS)),
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
_COMPILED: Rules = tuple((re.compile(pattern), rule) for pattern, rule in _RULES)
_SHALLOW: Rules = tuple(
    next(row for row in _COMPILED if row[0].fullmatch(word))
    for word in ("vocab_size", "num_layers", "num_experts")
)
_UNSET = {
    "vocab_size": VOCABULARY,
    "pad_token_id": 1,
    "head_dim": HEAD,
    "num_experts_per_tok": 2,
    "prediction_length": 8,
    "n_group": 1,
    "topk_group": 1,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
}
_WIDTHS = re.compile(r".*(sizes|dims|dim|channels|channel|widths|embed_dims?)")
_DEPTHS = re.compile(r".*(depths?|layers?|blocks|repeats)")
_HEADS = re.compile(r".*heads")
_TOKEN = re.compile(r".*(token_id|token_index|_token|bos|eos)(_id)?s?")


def tiny(config: Any, overrides: dict[str, Any] | None = None, kinds: bool = True) -> Any:
    """The same kind of configuration, small enough for one core and one second.

    Args:
        overrides: Values for what the rules get wrong; dictionaries reach into parts.
        kinds: One layer of each published kind; otherwise the first two, of the kinds derived for two.
    """
    return type(config)(**_merged(shrink(config.to_dict(), _COMPILED, kinds), overrides or {}))


def shallow(config: Any) -> Any:
    """Few layers, few experts, a small vocabulary, but the published widths."""
    return type(config)(**shrink(config.to_dict(), _SHALLOW))


def shrink(data: dict[str, Any], rules: Rules, kinds: bool = False) -> dict[str, Any]:
    """Numbers made small, derived lists left out so that the configuration derives them again."""
    tokens, depth = _Tokens(), data.get("num_hidden_layers")
    kept = _one_of_each_kind(data, depth) if kinds else []
    small: dict[str, Any] = {}
    for key, value in data.items():
        if key in _DROPPED or (key in _KINDS and not kept):
            continue
        if key == "attention_types":
            value = [[value[0][0], LAYERS // len(value[0][0])]]
        if isinstance(value, list) and len(value) == depth and depth > LAYERS:
            value = [value[i] for i in kept or range(LAYERS)]  # one entry a layer
        small[key] = _value(key, value, tokens, rules, kinds)
    return small | ({"num_hidden_layers": len(kept)} if kept else {})


def _one_of_each_kind(data: dict[str, Any], depth: int | None) -> list[int]:
    """The first layer of each kind, and at least two; none if the configuration knows no kinds."""
    lists = [data[key] for key in _KINDS if isinstance(data.get(key), list)]
    lists = [kinds for kinds in lists if len(kinds) == depth]
    if not lists or depth is None:
        return []
    firsts: dict[tuple[Any, ...], int] = {}
    for layer, kind in enumerate(zip(*lists, strict=True)):
        firsts.setdefault(kind, layer)
    return sorted(
        set(firsts.values()) | set(range(min(LAYERS, depth) if len(firsts) < LAYERS else 0))
    )


def _merged(data: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    nested = {k: _merged(data.get(k) or {}, v) for k, v in overrides.items() if isinstance(v, dict)}
    return data | overrides | nested


class _Tokens:
    """Numbers of special tokens, counted down from the end of the small vocabulary."""

    def __init__(self) -> None:
        self.next = VOCABULARY - 1

    def small(self, value: int) -> int:
        if value < VOCABULARY - 32:
            return value
        self.next -= 1
        return self.next


def _value(key: str, value: Any, tokens: _Tokens, rules: Rules, kinds: bool) -> Any:
    if value is None:
        return _UNSET.get(key)
    if isinstance(value, bool):
        return value
    if isinstance(value, dict):
        return _rope(value) if "rope" in key else shrink(value, rules, kinds) | _kept(value)
    if isinstance(value, int):
        return tokens.small(value) if _TOKEN.fullmatch(str(key)) else _number(key, value, rules)
    if isinstance(value, list | tuple) and value and all(type(v) is int for v in value):
        return type(value)(_numbers(key, list(value), rules))
    return value


def _kept(value: dict[str, Any]) -> dict[str, Any]:
    """A sub-configuration needs its type to be built again."""
    return {"model_type": value["model_type"]} if "model_type" in value else {}


def _number(key: str, value: int, rules: Rules) -> int:
    for pattern, rule in rules:
        if pattern.fullmatch(str(key)):
            return rule(value)
    return value


def _numbers(key: str, values: list[int], rules: Rules) -> list[int]:
    least = max(min(values), 1)
    if _DEPTHS.fullmatch(key):
        return [min(v, LAYERS) for v in values]
    if rules is not _COMPILED:
        return values
    if _HEADS.fullmatch(key):
        return [max(1, v // least) for v in values]
    if "image_size" in key or "patch_size" in key:
        return [_number("image_size" if "image" in key else "patch_size", v, rules) for v in values]
    if _WIDTHS.fullmatch(key) and least >= 32:
        return [v * 32 // least for v in values]
    return values


def _rope(value: dict[str, Any]) -> dict[str, Any]:
    """Rotary sections sum to half a head."""
    nested = {k: _rope(v) if isinstance(v, dict) else v for k, v in value.items()}
    half = int(HEAD // 2 * value.get("partial_rotary_factor", 1.0))
    third = half // 3
    rotary = "rope_theta" in value or "rope_type" in value
    return nested | ({"mrope_section": [half - 2 * third, third, third]} if rotary else {})
