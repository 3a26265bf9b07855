"""What happens between the query and the attended values: one way of computing it a class."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import fx

from exporters.patterns.base import Refusal, keeps_values, scale_factor
from surgery.anatomy.attention import Core
from surgery.anatomy.graph import op_name, shape_of


@dataclass(frozen=True)
class Scores:
    """``softmax(scale * query key^T + mask) value``, and nothing else.

    Attributes:
        query, key, value: Operands, (batch, heads, length, size); the key with its last two
            dimensions swapped if ``key_transposed``.
        key_transposed: Whether the graph hands over key^T.
        scale: Factor of the product.
        mask: Additive or boolean (True keeps) mask, broadcast to (batch, heads, length, length).
        causal: Whether the operator itself hides later positions.
        product: The node that takes query and key.
        result: The node with the attended values, (batch, heads, length, size).
    """

    query: fx.Node
    key: fx.Node
    value: fx.Node
    key_transposed: bool
    scale: float
    mask: fx.Node | None
    causal: bool
    product: fx.Node
    result: fx.Node


class ScoresPattern(Protocol):
    """Reads one way of computing attention, strictly."""

    kind: ClassVar[str]

    def match(self, core: Core) -> Scores | Refusal:
        """Return the scores, or what stands in the way."""


class ScaledDotProduct:
    """``aten.scaled_dot_product_attention``."""

    kind = "sdpa"
    _names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")

    def match(self, core: Core) -> Scores | Refusal:
        given = {**dict(zip(self._names, core.node.args, strict=False)), **core.node.kwargs}
        if given.get("dropout_p"):
            return Refusal(f"dropout with p = {given['dropout_p']} is active")
        if given.get("enable_gqa"):
            return Refusal("key and value heads are shared by groups of query heads (enable_gqa)")
        scale = given.get("scale")
        if scale is None:
            scale = 1 / math.sqrt(shape_of(core.query)[-1])
        mask = given.get("attn_mask")
        return Scores(
            core.query,
            core.key,
            core.value,
            key_transposed=False,
            scale=float(scale),  # type: ignore[arg-type]
            mask=mask if isinstance(mask, fx.Node) else None,
            causal=bool(given.get("is_causal")),
            product=core.node,
            result=core.result,
        )


class SoftmaxBetweenProducts:
    """``softmax(query @ key^T * scale + mask, -1) @ value``, node by node."""

    kind = "softmax"

    def match(self, core: Core) -> Scores | Refusal:
        softmax = core.node
        if softmax.args[1] not in (-1, len(shape_of(softmax)) - 1):
            return Refusal(f"the softmax runs over dimension {softmax.args[1]}")
        result = self._result(core)
        if isinstance(result, Refusal):
            return result
        before = self._before(softmax)
        if isinstance(before, Refusal):
            return before
        product, scale, mask = before
        query, key = product.args[:2]
        assert isinstance(query, fx.Node) and isinstance(key, fx.Node)
        value = result.args[1]
        assert isinstance(value, fx.Node)
        return Scores(query, key, value, True, scale, mask, False, product, result)

    def _before(self, softmax: fx.Node) -> tuple[fx.Node, float, fx.Node | None] | Refusal:
        """Walk back from the softmax to the product: one sum with a mask, numbers, nothing else."""
        node, scale, mask = softmax.args[0], 1.0, None
        while isinstance(node, fx.Node) and op_name(node) != "matmul":
            factor = scale_factor(node)
            if len(node.users) > 1:
                return Refusal(f"the scores are read more than once, at {op_name(node)}")
            if keeps_values(node):
                node = node.args[0]
            elif factor is not None and mask is None:
                scale, node = scale * factor, _tensor_arg(node)
            elif op_name(node) == "add" and mask is None and _sums_a_mask(node):
                node, mask = node.args
            else:
                return Refusal(f"scores pass through {op_name(node)} before the softmax")
        if not isinstance(node, fx.Node) or len(node.users) > 1:
            return Refusal("the product of query and key is read more than once")
        return node, scale, mask if isinstance(mask, fx.Node) else None

    def _result(self, core: Core) -> fx.Node | Refusal:
        """Walk on from the softmax to the product with the value."""
        node = core.node
        while len(node.users) == 1:
            (user,) = node.users
            if op_name(user) == "matmul" and user.args[0] is node:
                return user
            if not keeps_values(user):
                return Refusal(f"probabilities pass through {op_name(user)} after the softmax")
            node = user
        return Refusal("the attention probabilities are read more than once")


PATTERNS: dict[str, ScoresPattern] = {p.kind: p for p in (ScaledDotProduct(), SoftmaxBetweenProducts())}


def _sums_a_mask(node: fx.Node) -> bool:
    """Whether the second summand only broadcasts onto the first, and is not scaled."""
    first, second = node.args[:2]
    tensors = isinstance(first, fx.Node) and isinstance(second, fx.Node)
    return tensors and not node.kwargs and shape_of(first) == shape_of(node)  # type: ignore[arg-type]


def _tensor_arg(node: fx.Node) -> fx.Node:
    return next(arg for arg in node.args if isinstance(arg, fx.Node))
