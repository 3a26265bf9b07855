"""Attention spelled out: a product, a softmax, another product."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import fx

from exporters.evaluate import Evaluator, index_tensor
from exporters.patterns.base import LOWEST, Refusal, is_move, keeps_values, scale_factor
from exporters.patterns.scores import Replay, Scores, misscaled
from surgery.anatomy.attention import Core
from surgery.anatomy.axes import product_operands
from surgery.anatomy.graph import Graph, op_name, shape_of
from surgery.anatomy.softmaxes import SOFTMAXES

_PRODUCTS = frozenset({"matmul", "bmm", "baddbmm"})
_MIXES = frozenset({"linear", "conv2d"})
"""Talking heads: over the scores these run from head to head."""
_RESHAPES = frozenset({"view", "reshape", "_unsafe_view", "flatten", "unflatten"})


@dataclass
class _Walk:
    """From the softmax back to the product.

    Attributes:
        path: The product and what depends on it: a sum may name the mask first.
        nodes: What lies between, the softmax excluded, from the product on.
        scale: The product of all numbers.
        factors: Constants that hold one number for each head.
        masks: What is added.
        replayed: Whether the masks are not simply one last summand.
        softcap: The bound of the scores, if they have one.
    """

    path: frozenset[fx.Node] = frozenset()
    nodes: list[fx.Node] = field(default_factory=list)
    scale: float = 1.0
    factors: list[fx.Node] = field(default_factory=list)
    masks: list[fx.Node] = field(default_factory=list)
    replayed: bool = False
    softcap: float = 0.0


class SoftmaxBetweenProducts:
    """``softmax(query @ key^T * scale + mask, -1) @ value``, node by node."""

    kind: ClassVar[str] = "softmax"

    def match(self, core: Core, graph: Graph) -> Scores | Refusal:
        """Return the scores, or the first node that does something else."""
        softmax = core.node
        if op_name(softmax) not in SOFTMAXES:
            return Refusal("the softmax is spelled out in steps")
        if softmax.args[1] not in (-1, len(shape_of(softmax)) - 1):
            return Refusal(f"the softmax runs over dimension {softmax.args[1]}")
        walk = _Walk(graph.descendants(_products(core)))
        product = self._back(softmax, walk, graph)
        result = self._forward(softmax)
        for found in (product, result):
            if isinstance(found, Refusal):
                return found
        assert isinstance(product, fx.Node) and isinstance(result, fx.Node)
        (query, key), (_, value) = product_operands(product), product_operands(result)
        mask = walk.masks[0] if walk.masks else None
        replay = Replay(product, tuple(walk.nodes)) if walk.replayed else None
        scores = Scores(
            query,
            key,
            value,
            key_transposed=True,
            scale=walk.scale,
            mask=replay or mask,
            causal=False,
            product=product,
            result=result,
            factors=tuple(walk.factors),
            softcap=walk.softcap,
        )
        return misscaled(scores) or scores

    def _back(self, softmax: fx.Node, walk: _Walk, graph: Graph) -> fx.Node | Refusal:
        node = softmax.all_input_nodes[0]
        while op_name(node) not in _PRODUCTS:
            if len(node.users) > 1:
                return Refusal(f"the scores are read more than once, at {op_name(node)}")
            following = self._step(node, walk, graph)
            if isinstance(following, Refusal):
                return following
            walk.nodes.insert(0, node)
            node = following
        if len(node.users) > 1:
            return Refusal("the product of query and key is read more than once")
        if op_name(node) == "baddbmm" and (refusal := _added(node, walk)):
            return refusal
        if walk.replayed and not _stays_in_place(node, walk, graph):
            return Refusal("the scores are rearranged before the softmax")
        # The operators bound scale * q k^T; so far the scale is what stands inside the tanh.
        walk.scale *= walk.softcap or 1.0
        return node

    def _step(self, node: fx.Node, walk: _Walk, graph: Graph) -> fx.Node | Refusal:
        """What comes before ``node``, if it is one of the things that may happen to scores."""
        factor, name = scale_factor(node), op_name(node)
        sources = node.all_input_nodes
        before = next((source for source in sources if source in walk.path), sources[0])
        if factor is not None:
            walk.scale *= factor
        elif (by_head := _factor_by_head(node, graph)) is not None:
            walk.factors.append(by_head)
        elif name == "tanh" and walk.scale > 0 and not (walk.softcap or walk.factors):
            walk.softcap, walk.scale = walk.scale, 1.0
        elif name in {"add", "masked_fill"} and walk.softcap:
            return Refusal("scores are masked before they are bounded by tanh")
        elif is_move(node) and name != "getitem":
            walk.replayed = True
        elif name == "add" and not node.kwargs and shape_of(before) == shape_of(node):
            # Whatever scales the sum scales the mask too.
            walk.replayed |= bool(walk.masks or walk.factors) or walk.scale != 1.0
            walk.masks += [source for source in sources if source is not before]
        elif name == "masked_fill":
            if refusal := _filled(node, walk):
                return refusal
            walk.replayed = True
        elif not keeps_values(node):
            mixed = "; no operator takes heads that are mixed" if name in _MIXES else ""
            return Refusal(f"scores pass through {name} before the softmax{mixed}")
        return before

    def _forward(self, softmax: fx.Node) -> fx.Node | Refusal:
        """Walk on from the softmax to the product with the value."""
        node = softmax
        while len(node.users) == 1:
            (user,) = node.users
            if op_name(user) in {"matmul", "bmm"} and user.args[0] is node:
                return user
            reshaped = op_name(user) in _RESHAPES and shape_of(user)[-2:] == shape_of(node)[-2:]
            if not (reshaped or keeps_values(user)):
                return Refusal(f"probabilities pass through {op_name(user)} after the softmax")
            node = user
        return Refusal("the attention probabilities are read more than once")


def _products(core: Core) -> list[fx.Node]:
    """Of query and key."""
    return [n for n in core.query.users if {*product_operands(n)} == {core.query, core.key}]


def _added(product: fx.Node, walk: _Walk) -> Refusal | None:
    """``baddbmm`` adds a mask to the product: the replay begins with it."""
    beta, alpha = (product.kwargs.get(name, 1) for name in ("beta", "alpha"))
    if walk.softcap or walk.factors or beta != 1 or not isinstance(alpha, int | float):
        return Refusal("scores pass through baddbmm before the softmax, with a factor on its mask")
    walk.scale *= alpha
    walk.replayed = True
    return None


def _filled(node: fx.Node, walk: _Walk) -> Refusal | None:
    """``masked_fill`` replaces scores; that is a sum only where the sum is what stands there instead of them."""
    value: Any = node.args[2]
    known = isinstance(value, int | float) and not walk.factors
    if known and value * walk.scale <= LOWEST:
        return None
    return Refusal(f"masked_fill puts {value} in the place of scores: no sum says the same")


def _factor_by_head(node: fx.Node, graph: Graph) -> fx.Node | None:
    """The constant that the scores are multiplied with, if it is the same for all of a head's scores."""
    if op_name(node) != "mul" or len(node.all_input_nodes) != 2:
        return None
    scores, factor = node.all_input_nodes
    by_head = scores in graph.data and factor not in graph.data
    return factor if by_head and shape_of(factor)[-2:] == (1, 1) else None


def _stays_in_place(product: fx.Node, walk: _Walk, graph: Graph) -> bool:
    """Whether every score is, before the softmax, where the product put it."""
    start = index_tensor(shape_of(product))
    values, found = Evaluator(graph, {product: start}), start
    for node in walk.nodes:
        found = values.values[node] = values(node) if is_move(node) else found
    # Batch and heads may be one dimension or two.
    return found.shape[-2:] == start.shape[-2:] and torch.equal(found.flatten(), start.flatten())
