"""What happens between the query and the attended values, in the words of ``softmax(s q k^T + m) v``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import fx

from exporters.patterns.base import Refusal
from surgery.anatomy.attention import Core
from surgery.anatomy.graph import Graph, shape_of


@dataclass(frozen=True)
class Replay:
    """A mask that is not one node: it is what the graph makes of scores that are all zero.

    Attributes:
        product: The product whose place the zeros take.
        nodes: What lies between it and the softmax, in order: sums, factors, moves.
    """

    product: fx.Node
    nodes: tuple[fx.Node, ...]


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
        factors: What the product is multiplied with besides: one number for each head.
        softcap: ``c`` of ``c tanh(s / c)``, by which scores ``s`` are bounded before the mask is added;
            0 if they are not.
    """

    query: fx.Node
    key: fx.Node
    value: fx.Node
    key_transposed: bool
    scale: float
    mask: fx.Node | Replay | None
    causal: bool
    product: fx.Node
    result: fx.Node
    factors: tuple[fx.Node, ...] = ()
    softcap: float = 0.0


def uncapped(scores: Scores) -> Refusal | None:
    """Most operators have no soft cap."""
    if not scores.softcap:
        return None
    return Refusal(f"scores pass through tanh before the softmax: a soft cap of {scores.softcap:g}")


def misscaled(scores: Scores) -> Refusal | None:
    """Factors that no operator takes: 0, or others than one for each head of the query."""
    if scores.scale == 0:
        return Refusal("the scores are multiplied with 0, which the operators take for no factor")
    query = shape_of(scores.query)
    for shape in map(shape_of, scores.factors):
        fits = (f in (1, q) for f, q in zip(shape[::-1], query[::-1], strict=False))
        if len(shape) > len(query) or not all(fits):
            return Refusal(f"the scores are multiplied with {shape}, and the query is {query}")
    return None


class ScoresPattern(Protocol):
    """Reads one way of computing attention, strictly."""

    kind: ClassVar[str]

    def match(self, core: Core, graph: Graph) -> Scores | Refusal:
        """Return the scores, or what stands in the way."""
