"""Batch norm in eval mode is a factor and a summand for each channel: both go into a neighbour's weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from exporters.editor import Editor
from exporters.evaluate import Constants, Evaluator, NotConstantError
from exporters.patterns.base import Refusal, is_move, keeps_values, readers
from exporters.patterns.heads import linear_parts
from surgery.anatomy.graph import Graph, module_path, op_name, shape_of

_CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d"})


@dataclass(frozen=True, eq=False)
class Product:
    """A linear or a convolution with constant weights.

    Attributes:
        node: The call.
        x: Its input.
        weight: (out, in, ...) in fp64, so that many small changes are rounded once.
        bias: (out,) likewise.
        rest: A convolution's stride, padding, dilation and groups; None for a linear.
    """

    node: fx.Node
    x: fx.Node
    weight: Tensor
    bias: Tensor
    rest: tuple[Any, ...] | None

    @property
    def channel_dim(self) -> int:
        """Where input and output keep their channels."""
        return 1 if self.rest is not None else -1

    def after(self, factor: Tensor, offset: Tensor) -> Product:
        """The product whose outputs are multiplied and shifted, channel by channel."""
        weight = self.weight * factor.view(-1, *[1] * (self.weight.ndim - 1))
        return replace(self, weight=weight, bias=self.bias * factor + offset)

    def behind(self, factor: Tensor, offset: Tensor) -> Product:
        """The product whose inputs are."""
        spread = (1, -1, *[1] * (self.weight.ndim - 2))
        added = (self.weight * offset.view(spread)).flatten(1).sum(1)
        return replace(self, weight=self.weight * factor.view(spread), bias=self.bias + added)

    def write(self, editor: Editor) -> None:
        """Put it in place of the call."""
        target = self.node.target if self.rest is not None else torch.ops.aten.linear.default
        name = f"{module_path(self.node)}.{self.node.name}"
        weight = editor.constant(f"{name}_weight", self.weight.float())
        bias = editor.constant(f"{name}_bias", self.bias.float())
        with editor.before(self.node):
            made = editor.node(target, self.x, weight, bias, *(self.rest or ()))  # type: ignore[arg-type]
        made.meta = dict(self.node.meta)
        editor.replace(self.node, made)


@dataclass(frozen=True, eq=False)
class BatchNormMatch:
    """A batch norm, its input, and the products that take over what it does."""

    node: fx.Node
    x: fx.Node
    products: tuple[Product, ...]

    @property
    def changed(self) -> set[fx.Node]:
        """The nodes that are replaced, but for the norm."""
        return {product.node for product in self.products}

    def write(self, editor: Editor) -> None:
        """Write the products, and hand the norm's input on."""
        for product in self.products:
            product.write(editor)
        editor.replace(self.node, editor.current(self.x))


class BatchNormPattern:
    """``batch_norm(linear(x))``, or ``linear(batch_norm(x))`` for all that read it; convolutions likewise.

    Moves may stand between the two; an index tensor shows that each channel stays one.
    """

    def match(self, node: fx.Node, graph: Graph) -> BatchNormMatch | Refusal:
        """Match at a batch norm, or say what is in the way."""
        if op_name(node) != "batch_norm" or node.args[5]:
            return Refusal("no batch norm in eval mode")
        try:
            factor, offset = _change(node, Constants(graph))
        except NotConstantError as error:
            return Refusal(f"{error} is no constant")
        x = node.args[0]
        assert isinstance(x, fx.Node)
        before = _product_before(x, graph)
        if before is not None:
            return BatchNormMatch(node, x, (before.after(factor, offset),))
        after = list(_products_after(node, graph))
        if not after or None in after:
            return Refusal("neither what makes its input nor all that reads it are plain products")
        return BatchNormMatch(node, x, tuple(p.behind(factor, offset) for p in after if p))


def _change(node: fx.Node, constants: Constants) -> tuple[Tensor, Tensor]:
    """Factor and summand of each channel, fp64."""
    weight, bias, mean, variance = (
        constants(a).double() if isinstance(a, fx.Node) else None for a in node.args[1:5]
    )
    if mean is None or variance is None:
        raise NotConstantError(node.name)
    factor = (variance + node.args[7]).rsqrt()
    factor = factor if weight is None else factor * weight
    offset = -mean * factor
    return factor, offset if bias is None else offset + bias


def _product_before(x: fx.Node, graph: Graph) -> Product | None:
    """The product whose output channels are the norm's, if nothing else reads it on the way."""
    node, passed = x, []
    while len(readers(node)) == 1 and (is_move(node) or keeps_values(node)):
        passed.append(node)
        node = node.all_input_nodes[0]
    product = _product(node, graph) if len(readers(node)) == 1 else None
    if product is None:
        return None
    kept = _keeps_channels(node, product.channel_dim, x, 1, graph, passed)
    return product if kept else None


def _products_after(node: fx.Node, graph: Graph) -> Iterator[Product | None]:
    """All products that read the norm's output, None for anything else that does."""
    stack: list[tuple[fx.Node, list[fx.Node]]] = [(node, [])]
    while stack:
        source, passed = stack.pop()
        for user in readers(source):
            if is_move(user) or keeps_values(user):
                stack.append((user, [*passed, user]))
                continue
            product = _product(user, graph)
            if product is None or product.x is not source or not _unpadded(product):
                yield None
                return
            dim = product.channel_dim
            kept = _keeps_channels(node, 1, source, dim, graph, passed)
            yield product if kept else None


def _product(node: fx.Node, graph: Graph) -> Product | None:
    """The product that a node computes, if its weights are constants."""
    rest: tuple[Any, ...] | None = None
    in_out = False
    parts: Sequence[Any] = ()
    if op_name(node) in _CONVOLUTIONS and not node.kwargs:
        parts, rest = (*node.args, None)[:3], tuple(node.args[3:])
    elif (found := linear_parts(node)) is not None and len(shape_of(node)) > 1:
        parts, in_out = found[:3], found[3]
    if not parts or not all(isinstance(part, fx.Node) for part in parts[:2]):
        return None
    x, weight, bias = parts
    constants = Constants(graph)
    try:
        matrix = constants(weight).double()
        vector = constants(bias).double() if isinstance(bias, fx.Node) else None
    except NotConstantError:
        return None
    if matrix.ndim < 2 or (rest is None and matrix.ndim != 2):
        return None
    matrix = matrix.T if in_out else matrix
    vector = matrix.new_zeros(len(matrix)) if vector is None else vector
    return Product(node, x, matrix, vector, rest) if vector.shape == matrix.shape[:1] else None


def _unpadded(product: Product) -> bool:
    """Whether every output sees real inputs only (a shift would not be in the padding), in one group."""
    if product.rest is None:
        return True
    given = dict(enumerate(product.rest))
    padding, groups = given.get(1, 0), given.get(3, 1)
    inside = padding in (0, "valid") or not (isinstance(padding, str) or any(padding))
    return bool(groups == 1 and inside)


def _keeps_channels(
    start: fx.Node, dim: int, end: fx.Node, end_dim: int, graph: Graph, passed: list[fx.Node]
) -> bool:
    """Whether channel c of ``start`` is channel c of ``end``, everywhere."""
    same = [node for node in passed if keeps_values(node)]
    found = Evaluator(graph, {start: _numbered(shape_of(start), dim)}, same)(end)
    return found.shape == shape_of(end) and torch.equal(found, _numbered(shape_of(end), end_dim))


def _numbered(shape: tuple[int, ...], dim: int) -> Tensor:
    """A tensor in which every element is the number of its channel."""
    numbers = torch.arange(shape[dim])
    spread = [1] * len(shape)
    spread[dim] = -1
    return numbers.view(spread).expand(shape)
