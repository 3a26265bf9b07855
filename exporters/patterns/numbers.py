"""The numbers that a mask is made with: beyond them nothing new happens to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from exporters.evaluate import NotConstantError
from exporters.patterns.base import MOVES
from surgery.anatomy.graph import Graph, backward, op_name

_MADE = frozenset([
    "arange", "scalar_tensor", "full", "full_like", "new_full", "ones", "ones_like", "new_ones",
    "zeros", "zeros_like", "new_zeros", "lift_fresh", "lift_fresh_copy", "sym_size", "expand",
    "expand_as", "repeat", "cat", "stack", "index", "to", "_to_copy", "type_as", "tril", "triu",
    "where", "masked_fill", "lt", "le", "gt", "ge", "eq", "ne", "add", "sub", "rsub", "mul",
    "div", "floor_divide", "floordiv", "remainder", "mod", "clamp", "clamp_min", "clamp_max",
    "minimum", "maximum", "sym_min", "sym_max", "abs", "neg", "logical_and", "logical_or",
    "logical_not", "logical_xor", "bitwise_and", "bitwise_or", "bitwise_not", "bitwise_xor",
    "__and__", "__or__", "__xor__", "and_", "or_", "and", "or",
])  # fmt: skip
"""Operators under which a place or a padding mask is new no further than the product of the numbers."""
_PLACES = frozenset(
    {"dim", "dims", "dim0", "dim1", "start_dim", "end_dim", "source", "destination"}
)
_NARROW = (torch.int8, torch.uint8, torch.int16, torch.float16, torch.bfloat16)
_EXTREMES = {torch.finfo(torch.float32).min, torch.finfo(torch.float32).max}
_HARMLESS = {0, 1, -1, float("inf"), float("-inf"), *_EXTREMES}
_TO_THE_END = 2**31
_BEYOND = 16


def numbers_behind(mask: fx.Node, graph: Graph) -> list[int | float]:
    """Every number that plays a part in a mask, once for each time it stands there.

    Numbers are arguments, diagonals, bounds and lone stored values; 0, 1, the extremes, and arguments that name a
    dimension are left out.
    """
    found = [n for node in backward([mask]) for n in _numbers(node, graph)]
    return [n for n in found if n not in _HARMLESS and not _TO_THE_END <= n < float("inf")]


def reach(mask: fx.Node, graph: Graph, numbers: Iterable[int | float]) -> int:
    """The length beyond which a mask made with these numbers goes on as it began.

    A product, since steps of ``i // 32`` may be counted by fours.

    Raises:
        NotConstantError: If it also follows from something else: an unknown operator, a stored table, a fraction,
            numbers of so few bits that they wrap or round.
    """
    for node in backward([mask]):
        if not _is_known(node, graph):
            raise NotConstantError(node.name)
    if not all(float(number).is_integer() for number in numbers):
        raise NotConstantError(mask.name)
    return prod(1 + abs(int(number)) for number in numbers) + _BEYOND


def _is_known(node: fx.Node, graph: Graph) -> bool:
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor) and value.dtype in _NARROW:
        return False
    if node.op == "placeholder":
        stored = graph.constant(node)
        return stored.numel() == 1 if stored is not None else graph.tensor_name(node) is None
    return op_name(node) in _MADE or op_name(node) in MOVES


def _numbers(node: fx.Node, graph: Graph) -> Iterator[int | float]:
    stored = graph.constant(node)
    if stored is not None and stored.numel() == 1 and not stored.is_complex():
        yield stored.item()
    given = [*_named(node), *node.kwargs.items()]
    for value in pytree.tree_leaves([value for name, value in given if name not in _PLACES]):
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield value


def _named(node: fx.Node) -> Iterator[tuple[str, Any]]:
    """Positional arguments with their names; the sizes of ``expand`` only repeat."""
    schema = getattr(node.target, "_schema", None)
    names = [argument.name for argument in schema.arguments] if schema is not None else []
    for position, value in enumerate(node.args):
        name = names[position] if position < len(names) else ""
        if not (op_name(node) == "expand" and name == "size"):
            yield name, value
