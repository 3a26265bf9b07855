"""``com.microsoft::MultiHeadAttention``: scores, softmax and joining, whatever made query, key and value."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from exporters.inputs import Inputs
from exporters.patterns.attention import SCORES, unseen_by, unusable
from exporters.patterns.base import HIDDEN, Refusal
from exporters.patterns.heads import Gathered, trace_result
from exporters.patterns.masks import MaskReading, read_mask
from exporters.patterns.operands import Operand, flat_operand, with_heads
from exporters.patterns.scores import Scores, uncapped
from exporters.patterns.unseen import Unseen
from exporters.rewrite import Rewriter
from surgery.anatomy.attention import Core
from surgery.anatomy.graph import Graph, shape_of

OPERATOR = ("com.microsoft", "MultiHeadAttention")


@dataclass(frozen=True, eq=False)
class MultiHeadMatch:
    """An attention whose operands are taken as they are.

    Attributes:
        query, key, value: The operands.
        gathered: Where the heads are side by side again; None if the graph never joins them.
        result: The attended values, (batch, heads, length, size).
        heads: Number of query heads.
        scale: Factor of the scores.
        mask: What is hidden.
        unseen: Under what a query may see nothing, and is then 0.
    """

    query: Operand
    key: Operand
    value: Operand
    gathered: Gathered | None
    result: fx.Node
    heads: int
    scale: float
    mask: MaskReading
    unseen: Unseen | None

    operator = OPERATOR
    products = 0

    def write(self, rewriter: Rewriter, module: str) -> None:
        """Put the operator in place: query, key, value, bias, padding mask, additive bias."""
        target = self.result if self.gathered is None else self.gathered.node
        padding = rewriter.padding(self.mask.padding)
        attributes = {
            "num_heads": self.heads,
            "scale": self.scale,
            "unidirectional": int(self.mask.causal),
            "mask_filter_value": HIDDEN,
        }
        with rewriter.before(target):
            query, key, value = (o.joined(rewriter) for o in (self.query, self.key, self.value))
            batch, length = rewriter.sizes(self.query.node, 0, -2)
            (keys,) = rewriter.sizes(self.key.node, -1 if self.key.transposed else -2)
            addend = rewriter.addend(self.mask.bias, (batch, self.heads, length, keys))
            size = shape_of(self.value.node)[-1]
            shape = (batch, length, self.heads * size)
            inputs = [query, key, value, None, padding, addend]
            node = rewriter.fused(self.operator, inputs, attributes, shape)
            if self.unseen is not None:
                node = self.unseen.zero(node, self.heads, size, rewriter)
            result = with_heads(node, self.gathered, self.result, self.heads, rewriter)
            rewriter.replace(target, result)


class MultiHeadPattern:
    """Any attention over four dimensions, or over three, which is one head."""

    def match(self, core: Core, graph: Graph, inputs: Inputs) -> MultiHeadMatch | Refusal:
        """Match what lies between the operands and the result, or say what is in the way."""
        scores = SCORES[core.kind].match(core, graph)
        if isinstance(scores, Refusal):
            return scores
        if capped := uncapped(scores):
            return capped
        dimensions = len(shape_of(scores.query))
        if dimensions not in (3, 4):
            return Refusal(
                f"the query has {dimensions} dimensions, not (batch, heads, length, size)"
            )
        mask = read_mask(scores.mask, graph, inputs)
        operands = _operands(scores, graph)
        if isinstance(operands, Refusal):
            return operands
        return _ill_shaped(scores, mask) or self._build(operands, scores, mask, graph)

    def _build(
        self,
        operands: tuple[Operand, Operand, Operand],
        scores: Scores,
        mask: MaskReading,
        graph: Graph,
    ) -> MultiHeadMatch:
        flat = len(shape_of(scores.query)) == 3
        gathered = Refusal("one head") if flat else trace_result(scores.result, graph)
        return MultiHeadMatch(
            *operands,
            None if isinstance(gathered, Refusal) else gathered,
            scores.result,
            1 if flat else shape_of(scores.query)[1],
            scores.scale,
            MaskReading(mask.causal or scores.causal, mask.padding, mask.bias),
            unseen_by(scores, mask, graph),
        )


def _operands(scores: Scores, graph: Graph) -> tuple[Operand, Operand, Operand] | Refusal:
    heads = shape_of(scores.query)[1]
    found = []
    for role, node in (("query", scores.query), ("key", scores.key), ("value", scores.value)):
        shape = shape_of(node)
        transposed = role == "key" and scores.key_transposed
        if len(shape) != len(shape_of(scores.query)) or shape[0] != shape_of(scores.query)[0]:
            return Refusal(f"{role} has shape {shape}, query {shape_of(scores.query)}")
        shared = len(shape) == 4 and shape[1] != heads
        if shared and heads % shape[1]:
            return Refusal(f"{heads} query heads cannot share {shape[1]} {role} heads")
        factors = scores.factors if role == "query" else ()
        whole = not (shared or factors or len(shape) == 3)
        flat = flat_operand(node, transposed, graph) if whole else None
        found.append(Operand(node, flat, transposed, heads // shape[1] if shared else 1, factors))
    query, key, value = found
    return query, key, value


def _ill_shaped(scores: Scores, mask: MaskReading) -> Refusal | None:
    """The operator wants one head size for query and key, one length for key and value."""
    query, key, value = (shape_of(n) for n in (scores.query, scores.key, scores.value))
    key = (*key[:-2], key[-1], key[-2]) if scores.key_transposed else key
    if query[-1] != key[-1] or key[-2] != value[-2]:
        return Refusal(f"query {query}, key {key} and value {value} do not fit one operator")
    if (scores.causal or mask.causal) and not _as_long(scores):
        return Refusal(f"a causal mask over {query[-2]} queries and {key[-2]} keys: two lengths")
    if len(query) == 3 and isinstance(mask.bias, fx.Node):
        return Refusal("a mask over attention without a dimension for heads")
    return unusable(mask, scores) if len(query) == 4 else None


def _as_long(scores: Scores) -> bool:
    """Whether there are as many queries as keys at any size: two dynamic lengths may be equal by chance."""
    keys = -1 if scores.key_transposed else -2
    return str(scores.query.meta["val"].shape[-2]) == str(scores.key.meta["val"].shape[keys])
