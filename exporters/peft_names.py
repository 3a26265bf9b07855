"""What the module paths of a PEFT checkpoint say: a role word, a block number, a tower.

A checkpoint has no graph, so its own names are all there is to read. The model's side never is read by
name: :mod:`exporters.peft_match` takes it from the anatomy, and shapes must agree.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

from policies.roles import Role

FUSED = "query, key and value in one"
"""Said of a projection that plays three roles."""

Word = Role | str
"""A role, or :data:`FUSED`."""

_WORDS: dict[Word, str] = {
    Role.QUERY: "q query q_proj query_proj q_lin q_linear wq to_q",
    Role.KEY: "k key k_proj key_proj k_lin k_linear wk to_k",
    Role.VALUE: "v value v_proj value_proj v_lin v_linear wv to_v",
    FUSED: "qkv qkv_proj query_key_value c_attn wqkv in_proj",
    Role.ATTENTION_OUTPUT: "o o_proj out_proj out_lin to_out",
    Role.UP: "fc1 up_proj c_fc lin1 linear1 dense_h_to_4h wi",
    Role.GATE: "gate_proj wi_0",
    Role.DOWN: "fc2 down_proj lin2 linear2 dense_4h_to_h",
    Role.HEAD: "classifier head score lm_head",
}
_BY_WORD: dict[str, Word] = {word: role for role, words in _WORDS.items() for word in words.split()}
_PLACES: tuple[tuple[str, Role], ...] = (
    ("att", Role.ATTENTION_OUTPUT),
    ("intermediate", Role.UP),
    ("mlp", Role.DOWN),
    ("ffn", Role.DOWN),
    ("output", Role.DOWN),
)
"""What ``dense``, ``proj`` or ``wo`` is hangs on where it stands; the first that fits."""
_VAGUE = frozenset({"dense", "proj", "c_proj", "wo", "output"})


def role_word(path: str) -> Word | None:
    """The role that a path names, or None: ``layer.0.attention.output.dense`` is an attention output."""
    parts = [part.lower() for part in path.split(".") if not part.isdigit()]
    if (word := _BY_WORD.get(parts[-1])) is not None:
        return word
    if parts[-1] not in _VAGUE:
        return None
    around = ".".join(parts[-3:-1]) if parts[-1] != "output" else ".".join(parts[-3:])
    return next((role for place, role in _PLACES if place in around), None)


def tower(path: str) -> str:
    """What stands before the first number: ``vision_model.encoder.layers``."""
    return re.split(r"(?:^|\.)\d+(?:\.|$)", path, maxsplit=1)[0]


def blocks(paths: Iterable[str], depths: Mapping[str, int]) -> dict[str, int | None]:
    """Block number of each path within its tower; None without a number, or where nothing tells it.

    One number that counts is the block number. Where two count (stage and block) the pairs are numbered
    through, if there are as many of them as the tower has blocks.

    Args:
        paths: Module paths of a checkpoint.
        depths: Number of blocks of each tower of the checkpoint.
    """
    counted = {path: _counting(path, family) for family in _families(paths) for path in family}
    by_tower: dict[str, set[tuple[int, ...]]] = defaultdict(set)
    for path, numbers in counted.items():
        by_tower[tower(path)].add(numbers)
    found: dict[str, int | None] = {}
    for path, numbers in counted.items():
        order = sorted(by_tower[tower(path)] - {()})
        if len(numbers) == 1 and all(len(other) == 1 for other in order):
            found[path] = numbers[0]
        else:
            whole = numbers in order and len(order) == depths.get(tower(path))
            found[path] = order.index(numbers) if whole else None
    return found


def pattern(path: str) -> str:
    """The path with a star for every number."""
    return ".".join("*" if part.isdigit() else part for part in path.split("."))


def _families(paths: Iterable[str]) -> list[list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        found[pattern(path)].append(path)
    return list(found.values())


def _counting(path: str, family: list[str]) -> tuple[int, ...]:
    """The numbers of a path that differ in its family; its only one if none does, none if there are several."""
    rows = [[int(part) for part in other.split(".") if part.isdigit()] for other in family]
    own = [int(part) for part in path.split(".") if part.isdigit()]
    varying = [i for i in range(len(own)) if len({row[i] for row in rows}) > 1]
    return tuple(own[i] for i in varying or (range(1) if len(own) == 1 else ()))
