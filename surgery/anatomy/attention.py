"""Attention sites: one pattern a class, each says why it does not match."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

from torch import fx

from surgery.anatomy.flow import Flow
from surgery.anatomy.graph import op_name, shape_of
from surgery.anatomy.operators import MOVES, NORMS, PRODUCTS, SCALES


@dataclass(frozen=True, eq=False)
class Core:
    """One attention computation: ``result = f(query, key) value``.

    Attributes:
        kind: ``sdpa``, ``flex``, ``softmax`` or ``linear``.
        node: The scaled-dot-product or softmax node.
        query, key, value: The operands.
        result: The node that carries the attended values.
        notes: What is unusual about it.
    """

    kind: str
    node: fx.Node
    query: fx.Node
    key: fx.Node
    value: fx.Node
    result: fx.Node
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class NoMatch:
    """Why a node is not an attention; ``attention_like`` asks for it to be counted as unplaced."""

    why: str
    attention_like: bool = False


class AttentionPattern(Protocol):
    """Recognises one way of computing attention."""

    @property
    def ops(self) -> frozenset[str]:
        """Names of the operators that may start a match."""

    def match(self, node: fx.Node, flow: Flow) -> Core | NoMatch:
        """Return the attention computed at ``node``, or the reason why there is none."""


class ScaledDotProduct:
    """A call of ``scaled_dot_product_attention``."""

    ops = frozenset({"scaled_dot_product_attention"})

    def match(self, node: fx.Node, flow: Flow) -> Core | NoMatch:
        """See :class:`AttentionPattern`."""
        operands = [*node.args[:3]]
        operands += [node.kwargs[k] for k in ("query", "key", "value")[len(operands) :]]
        query, key, value = operands
        assert isinstance(query, fx.Node) and isinstance(key, fx.Node)
        assert isinstance(value, fx.Node)
        return Core("sdpa", node, query, key, value, node)


class FlexAttention:
    """A call of ``flex_attention``; whatever its score function does, the operands are these."""

    ops = frozenset({"flex_attention"})

    def match(self, node: fx.Node, flow: Flow) -> Core | NoMatch:
        """See :class:`AttentionPattern`."""
        query, key, value = node.args[:3]
        assert isinstance(query, fx.Node) and isinstance(key, fx.Node)
        assert isinstance(value, fx.Node)
        results = [u for u in node.users if op_name(u) == "getitem" and u.args[1] == 0]
        if not results:
            return NoMatch("nothing takes its result", attention_like=True)
        return Core("flex", node, query, key, value, results[0])


class SoftmaxBetweenProducts:
    """A softmax of a product of two activations, multiplied with a third."""

    ops = frozenset({"softmax", "_softmax", "_safe_softmax"})

    def match(self, node: fx.Node, flow: Flow) -> Core | NoMatch:
        """See :class:`AttentionPattern`."""
        scores, mixed_before = _scores_behind(node, flow)
        if not scores:
            return NoMatch("no product of two activations behind the softmax")
        found = _product_after(node, flow)
        if found is None:
            return NoMatch("no product with a value after the softmax", attention_like=True)
        result, value, mixed_after, sums_rows = found
        sides = _sides(scores[0], node, sums_rows)
        if sides is None:
            return NoMatch(f"operands of {scores[0].name} are not nodes", attention_like=True)
        notes = (
            ["talking heads: scores are mixed across heads"] if mixed_before or mixed_after else []
        )
        if len(scores) > 1:
            notes.append(f"{len(scores)} products are summed into the scores; the first is read")
        return Core("softmax", node, *sides, value, result, tuple(notes))


PATTERNS: tuple[AttentionPattern, ...] = (
    ScaledDotProduct(),
    FlexAttention(),
    SoftmaxBetweenProducts(),
)


def find_cores(flow: Flow) -> tuple[list[Core], list[tuple[fx.Node, NoMatch]]]:
    """Every attention computation of the graph, and what looked like one but was not resolved."""
    cores: list[Core] = []
    missed: list[tuple[fx.Node, NoMatch]] = []
    for node in flow.graph.nodes:
        for pattern in PATTERNS:
            if op_name(node) not in pattern.ops:
                continue
            found = pattern.match(node, flow)
            if isinstance(found, Core):
                cores.append(found)
            elif found.attention_like:
                missed.append((node, found))
    attended = {score for core in cores for score in _scores_behind(core.node, flow)[0]}
    return cores, [
        (node, miss) for node, miss in missed if not _weighs_nothing(node, attended, flow)
    ]


def _weighs_nothing(softmax: fx.Node, attended: set[fx.Node], flow: Flow) -> bool:
    """Whether a softmax only shows the scores of an attention that was found, or is never used (SAM 2)."""
    if softmax not in flow.graph.live:
        return True
    return not attended.isdisjoint(_scores_behind(softmax, flow)[0][:1])


_SCORE_OPS = MOVES | SCALES | {"tanh", "log", "exp", "sigmoid", "relu"}


def is_product(node: fx.Node, flow: Flow) -> bool:
    """Whether the node multiplies two activations as matrices."""
    if op_name(node) not in PRODUCTS or node in flow.reader.by_node:
        return False
    operands = product_operands(node)
    return len(operands) == 2 and all(operand in flow.active for operand in operands)


def product_operands(node: fx.Node) -> list[fx.Node]:
    """The two factors of a product."""
    name = op_name(node)
    args = (
        node.args[1] if name == "einsum" else node.args[1:3] if name == "baddbmm" else node.args[:2]
    )
    return (
        [arg for arg in args if isinstance(arg, fx.Node)] if isinstance(args, list | tuple) else []
    )


def _scores_behind(softmax: fx.Node, flow: Flow) -> tuple[list[fx.Node], bool]:
    """Products behind a softmax, nearest first, and whether heads are mixed on the way."""
    found: list[fx.Node] = []
    mixed = False
    seen, queue = {softmax}, [softmax]
    for node in queue:
        for source in node.all_input_nodes:
            if source in seen or source not in flow.active:
                continue
            seen.add(source)
            if is_product(source, flow):
                found.append(source)
            elif _mixes_heads(source, flow):
                mixed = True
                queue.append(source)
            elif _keeps_scores(source, flow):
                queue.append(source)
    return found, mixed


def _keeps_scores(node: fx.Node, flow: Flow) -> bool:
    if node.op != "call_function" or node in flow.reader.by_node:
        return False
    return op_name(node) in _SCORE_OPS - NORMS


def _mixes_heads(node: fx.Node, flow: Flow) -> bool:
    """A small square linear or 1x1 convolution over the head dimension of the scores."""
    read = flow.reader.by_node.get(node)
    return read is not None and read.in_features == read.out_features and len(shape_of(node)) == 4


def _product_after(
    softmax: fx.Node, flow: Flow
) -> tuple[fx.Node, fx.Node, bool, bool | None] | None:
    """The product of the probabilities with a value: the product, the value, head mixing, :func:`_sums_rows`."""
    mixed = False
    turns: dict[fx.Node, bool | None] = {softmax: False}
    queue = [softmax]
    for node in queue:
        for user in sorted(node.users, key=flow.graph.order.__getitem__):
            if user in turns:
                continue
            turns[user] = turned(user, turns[node])
            if is_product(user, flow):
                values = [operand for operand in product_operands(user) if operand not in turns]
                if len(values) == 1:
                    return user, values[0], mixed, _sums_rows(user, node, turns[node])
            elif _mixes_heads(user, flow):
                mixed = True
                queue.append(user)
            elif _keeps_scores(user, flow) or op_name(user) in {"batch_norm", "layer_norm"}:
                queue.append(user)
    return None


def turned(node: fx.Node, before: bool | None) -> bool | None:
    """Whether the last two dimensions have changed places after ``node``; None if others took part."""
    if before is None or op_name(node) not in {"transpose", "swapaxes", "permute", "mT", "t"}:
        return before
    dims = len(shape_of(node))
    order = list(range(dims))
    if op_name(node) == "permute":
        order = [int(d) % dims for d in node.args[1]]  # type: ignore[arg-type, union-attr]
    elif op_name(node) in {"mT", "t"}:
        order[-2:] = order[:-3:-1]
    else:
        one, two = (int(d) % dims for d in node.args[1:3])  # type: ignore[arg-type]
        order[one], order[two] = two, one
    if set(order[-2:]) != {dims - 1, dims - 2}:
        return None
    return before != (order[-1] != dims - 1)


def _sums_rows(product: fx.Node, probabilities: fx.Node, flipped: bool | None) -> bool | None:
    """Whether the product with the values sums over the rows of the scores; None where that is not plain."""
    if flipped is None or op_name(product) not in {"matmul", "bmm", "mm"}:
        return None
    return (product_operands(product)[0] is probabilities) == flipped


def _sides(
    product: fx.Node, softmax: fx.Node, sums_rows: bool | None
) -> tuple[fx.Node, fx.Node] | None:
    """Query and key among the operands: the product with the values sums over the keys.

    The softmax runs over them too, but for slot attention, where slots compete for each token.
    """
    operands = product_operands(product)
    if len(operands) != 2:
        return None
    left, right = operands
    swapped = _softmax_dim_from_end(softmax) == 2 if sums_rows is None else sums_rows
    if op_name(product) == "einsum":
        swapped = _einsum_swapped(product, softmax)
    return (right, left) if swapped else (left, right)


def _softmax_dim_from_end(softmax: fx.Node) -> int:
    dim = softmax.args[1] if len(softmax.args) > 1 else softmax.kwargs.get("dim", -1)
    assert isinstance(dim, int)
    return -dim if dim < 0 else len(shape_of(softmax)) - dim


def _einsum_swapped(product: fx.Node, softmax: fx.Node) -> bool:
    """In ``bhid,bhjd->bhij`` with a softmax over j, the key is the operand that holds j."""
    equation = re.sub(r"\s", "", str(product.args[0]))
    inputs, _, output = equation.partition("->")
    left, _, right = inputs.partition(",")
    label = output[-min(_softmax_dim_from_end(softmax), len(output))]
    return label in left and label not in right
