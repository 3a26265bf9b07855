"""``com.microsoft::Attention``: projection, heads, scores, softmax and joining in one operator."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, fx

from exporters.inputs import Inputs
from exporters.patterns.base import HIDDEN, Refusal
from exporters.patterns.heads import Gathered, Heads, one_input, trace_heads, trace_result
from exporters.patterns.masks import MaskReading, read_mask
from exporters.patterns.packed import side_by_side
from exporters.patterns.scores import Scores, ScoresPattern, uncapped
from exporters.patterns.sdpa import ScaledDotProduct
from exporters.patterns.softmax import SoftmaxBetweenProducts
from exporters.patterns.unseen import Unseen, unseen
from exporters.rewrite import Rewriter
from surgery.anatomy.attention import Core
from surgery.anatomy.graph import Graph, op_name, shape_of

_PATTERNS: tuple[ScoresPattern, ...] = (ScaledDotProduct(), SoftmaxBetweenProducts())
SCORES = {pattern.kind: pattern for pattern in _PATTERNS}
OPERATOR = ("com.microsoft", "Attention")


@dataclass(frozen=True, eq=False)
class AttentionMatch:
    """A whole attention site that one operator computes.

    Attributes:
        x: The one input of query, key and value, (batch, length, in).
        gathered: The node to replace.
        weight: (in, query + key + value), as the operator wants it.
        bias: (query + key + value,), zeros if there is none: without it the CPU's operator crashes up to
            ONNX Runtime 1.31.
        heads: Number of heads.
        sizes: Output features of query, key and value.
        scale: Factor of the scores.
        mask: What is hidden.
        unseen: Under what a query may see nothing, and is then 0.
        products: How many matrix products of the graph the one weight takes the place of.
    """

    x: fx.Node
    gathered: Gathered
    weight: Tensor
    bias: Tensor
    heads: int
    sizes: tuple[int, int, int]
    scale: float
    mask: MaskReading
    unseen: Unseen | None
    products: int

    operator = OPERATOR

    def write(self, rewriter: Rewriter, module: str) -> None:
        """Put the operator in place: activation, weight, bias, padding mask, past, additive bias."""
        target = self.gathered.node
        weight = rewriter.constant(f"{module}.attention.weight", self.weight)
        bias = rewriter.constant(f"{module}.attention.bias", self.bias)
        padding = rewriter.padding(self.mask.padding)
        attributes = {
            "num_heads": self.heads,
            "qkv_hidden_sizes": list(self.sizes),
            "scale": self.scale,
            "unidirectional": int(self.mask.causal),
            "mask_filter_value": HIDDEN,
        }
        with rewriter.before(target):
            batch, length = rewriter.sizes(self.x, 0, 1)
            addend = rewriter.addend(self.mask.bias, (batch, self.heads, length, length))
            inputs = [self.x, weight, bias, padding, None, addend]
            shape = (batch, length, self.sizes[2])
            node = rewriter.fused(self.operator, inputs, attributes, shape)
            if self.unseen is not None:
                node = self.unseen.zero(node, self.heads, self.sizes[2] // self.heads, rewriter)
            rewriter.replace(target, self.gathered.shaped(node, rewriter))


class AttentionPattern:
    """Self-attention straight from linear projections of one input."""

    def match(self, core: Core, graph: Graph, inputs: Inputs) -> AttentionMatch | Refusal:
        """Match the whole region node by node, or say what is in the way."""
        scores = SCORES[core.kind].match(core, graph)
        if isinstance(scores, Refusal):
            return scores
        if capped := uncapped(scores):
            return capped
        if scores.factors:
            return Refusal("the scores are scaled head by head")
        if len(shape_of(scores.result)) != 4:
            return Refusal(
                f"the result has shape {shape_of(scores.result)}: no dimension for heads"
            )
        gathered = trace_result(scores.result, graph)
        if isinstance(gathered, Refusal):
            return gathered
        heads = self._heads(scores, graph)
        if isinstance(heads, Refusal):
            return heads
        x = self._input(heads, scores)
        if isinstance(x, Refusal):
            return x
        mask = read_mask(scores.mask, graph, inputs)
        hidden = unseen_by(scores, mask, graph)
        return unusable(mask, scores) or self._build(x, gathered, heads, scores, mask, hidden)

    def _heads(self, scores: Scores, graph: Graph) -> tuple[Heads, Heads, Heads] | Refusal:
        query = trace_heads("query", scores.query, graph, transposed=False)
        key = trace_heads("key", scores.key, graph, transposed=scores.key_transposed)
        value = trace_heads("value", scores.value, graph, transposed=False)
        for found in (query, key, value):
            if isinstance(found, Refusal):
                return found
        assert isinstance(query, Heads) and isinstance(key, Heads) and isinstance(value, Heads)
        if not query.heads == key.heads == value.heads:
            return Refusal(f"{query.heads} query heads share {key.heads} key heads")
        return query, key, value

    def _input(self, heads: tuple[Heads, Heads, Heads], scores: Scores) -> fx.Node | Refusal:
        """The one (batch, length, in) tensor that all three project."""
        x = one_input(heads, shape_of(scores.query))
        if isinstance(x, Refusal):
            return x
        region = frozenset[fx.Node]().union(*(h.region for h in heads))
        users = {user for node in region.union(h.linear for h in heads) for user in node.users}
        if outside := users - region - {scores.product, scores.result}:
            return Refusal(
                f"a projection is read outside the attention too, by {outside.pop().name}"
            )
        return x

    def _build(
        self,
        x: fx.Node,
        gathered: Gathered,
        heads: tuple[Heads, Heads, Heads],
        scores: Scores,
        mask: MaskReading,
        hidden: Unseen | None,
    ) -> AttentionMatch:
        packed = side_by_side(x, heads)
        query, key, value = (len(h.bias) for h in heads)
        return AttentionMatch(
            x,
            gathered,
            packed.weight.T.contiguous(),
            packed.weight.new_zeros(len(packed.weight)) if packed.bias is None else packed.bias,
            heads[0].heads,
            (query, key, value),
            scores.scale,
            MaskReading(mask.causal or scores.causal, mask.padding, mask.bias),
            hidden,
            packed.products,
        )


def unseen_by(scores: Scores, mask: MaskReading, graph: Graph) -> Unseen | None:
    """Under what a query may see nothing, where torch then gives 0: a softmax that is spelled out does not."""
    fused = op_name(scores.product) == "scaled_dot_product_attention"
    return unseen(scores.mask, mask, graph) if fused else None


def unusable(mask: MaskReading, scores: Scores) -> Refusal | None:
    """The operators add a bias that broadcasts over batch and heads."""
    if not isinstance(mask.bias, fx.Node):
        return None
    shape = shape_of(mask.bias)
    batch, heads, *lengths = shape_of(scores.query)
    full = (batch, heads, lengths[0], shape_of(scores.value)[-2])
    if len(shape) <= 4 and all(m in (1, s) for m, s in zip(shape[::-1], full[::-1], strict=False)):
        return None
    if min(shape) < 0:
        return Refusal("the sizes of its mask follow from the values of tensors")
    return Refusal(f"the mask has shape {shape}, not {full}")
