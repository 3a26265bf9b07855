"""Where the operands of an attention come from, and where its result goes: proven by index tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from exporters.editor import Editor
from exporters.evaluate import Constants, Evaluator, NotConstantError, index_tensor
from exporters.patterns.base import Refusal, is_move, keeps_values, scale_factor
from surgery.anatomy.graph import Graph, op_name, shape_of


@dataclass(frozen=True, eq=False)
class Heads:
    """One operand: channels of one linear, moved into heads and scaled.

    Attributes:
        linear: The node of the projection.
        x: What it projects.
        weight: (out, in), the rows in the order of the heads, the factor multiplied in.
        bias: (out,) likewise, zeros if there is none.
        heads: Number of heads; ``out`` is heads times head size.
        region: The nodes between projection and attention, which fusion makes superfluous.
    """

    linear: fx.Node
    x: fx.Node
    weight: Tensor
    bias: Tensor
    heads: int
    region: frozenset[fx.Node]


def trace_heads(role: str, operand: fx.Node, graph: Graph, *, transposed: bool) -> Heads | Refusal:
    """Follow an operand back to its projection.

    Between the two only moves and factors are allowed. An index tensor in place of the
    projection's output then shows which channel every element is; the pattern holds if element
    (batch, head, position, i) always is channel c(head, i) of row (batch, position).

    Args:
        role: ``query``, ``key`` or ``value``, for the reason.
        operand: (batch, heads, length, size), or its last two dimensions swapped.
        graph: The program.
        transposed: Whether they are swapped.
    """
    if len(shape_of(operand)) != 4:
        return Refusal(
            f"{role} has {len(shape_of(operand))} dimensions, not (batch, heads, length, size)"
        )
    node, factor = operand, 1.0
    scaling: set[fx.Node] = set()
    region: set[fx.Node] = set()
    while (parts := linear_parts(node)) is None:
        number = scale_factor(node)
        if number is not None:
            factor *= number
            scaling.add(node)
        elif keeps_values(node):
            scaling.add(node)
        elif not is_move(node):
            return Refusal(
                f"{role} passes through {op_name(node)} between projection and attention"
            )
        region.add(node)
        node = node.all_input_nodes[0]
    channels = _channels(node, operand, graph, scaling, transposed)
    if channels is None:
        return Refusal(f"{role} is not a plain arrangement of its projection's channels into heads")
    return _heads(node, parts, channels, factor, graph, region, role)


def one_input(heads: Sequence[Heads], query: Sequence[int]) -> fx.Node | Refusal:
    """The one (batch, length, in) tensor that all operands project.

    Args:
        heads: The operands.
        query: Shape of the query, (batch, heads, length, size).
    """
    x = heads[0].x
    if any(h.x is not x for h in heads):
        return Refusal("query, key and value are projected from different inputs (cross attention)")
    source = x.args[0] if op_name(x) in {"view", "reshape"} else x
    for found in (x, source):
        if isinstance(found, fx.Node) and shape_of(found)[:-1] == (query[0], query[2]):
            return found
    return Refusal(f"the input has shape {shape_of(x)}, not (batch, length, features)")


Parts = tuple[object, object, object, bool]
"""Input, weight and bias of a linear, and whether the weight is (in, out)."""


def linear_parts(node: fx.Node) -> Parts | None:
    """Input, weight, bias, and whether the weight is (in, out); None for any other node."""
    name, args = op_name(node), node.args
    if name == "linear":
        return args[0], args[1], args[2] if len(args) > 2 else None, False
    if name == "addmm" and not node.kwargs:
        return args[1], args[2], args[0], True
    if name in {"matmul", "mm"}:
        return args[0], args[1], None, True
    return None


def weights_of(parts: Parts, constants: Constants) -> tuple[Tensor, Tensor | None] | Refusal:
    """The (out, in) weight and the (out,) bias of a linear, if they are constants of these shapes."""
    _, weight, bias, in_out = parts
    try:
        matrix = constants(weight)  # type: ignore[arg-type]
        vector = constants(bias) if isinstance(bias, fx.Node) else None
    except NotConstantError as error:
        return Refusal(f"{error}, which is no constant")
    if matrix.ndim != 2:
        return Refusal(f"a weight of shape {tuple(matrix.shape)}")
    matrix = matrix.T if in_out else matrix
    if vector is not None and vector.shape != matrix.shape[:1]:
        return Refusal(f"a bias of shape {tuple(vector.shape)} for {len(matrix)} outputs")
    return matrix, vector


def _channels(
    linear: fx.Node, operand: fx.Node, graph: Graph, scaling: set[fx.Node], transposed: bool
) -> Tensor | None:
    """(heads, size): the channel of every element of a head, if it is the same for all rows."""
    start = index_tensor(shape_of(linear))
    found = Evaluator(graph, {linear: start}, scaling)(operand)
    found = found.transpose(-1, -2) if transposed else found
    batch, _, length, _ = found.shape
    width = start.shape[-1]
    rows = index_tensor((batch, 1, length, 1)) * width
    offsets = found - rows
    channels: Tensor = offsets[0, :, 0, :]
    in_place = (
        bool((offsets == channels[None, :, None, :]).all())
        and start.numel() == rows.numel() * width
    )
    return channels if in_place and channels.min() >= 0 and channels.max() < width else None


def _heads(
    linear: fx.Node,
    parts: Parts,
    channels: Tensor,
    factor: float,
    graph: Graph,
    region: set[fx.Node],
    role: str,
) -> Heads | Refusal:
    x, weight, bias, _ = parts
    assert isinstance(x, fx.Node) and isinstance(weight, fx.Node)
    if weight in graph.data or bias in graph.data:
        return Refusal(f"{role} is not projected: {op_name(linear)} multiplies two activations")
    found = weights_of(parts, Constants(graph))
    if isinstance(found, Refusal):
        return Refusal(f"{role} is projected by {found.why}")
    matrix, vector = found
    rows = channels.flatten()
    matrix = matrix[rows].float() * factor
    offset = torch.zeros(len(rows)) if vector is None else vector[rows].float() * factor
    return Heads(linear, x, matrix, offset, len(channels), frozenset(region))


@dataclass(frozen=True)
class Gathered:
    """Where the heads are side by side again: (batch, length, heads * size).

    ``reshape`` holds the arguments of a reshape to the node's own shape, if that is another.
    """

    node: fx.Node
    reshape: object | None

    def shaped(self, joined: fx.Node, editor: Editor) -> fx.Node:
        """What takes the place of ``node``, given the joined heads."""
        if self.reshape is None:
            return joined
        return editor.node(torch.ops.aten.reshape.default, joined, self.reshape)


def trace_result(result: fx.Node, graph: Graph) -> Gathered | Refusal:
    """Follow the attended values forward to the node where the heads are side by side."""
    batch, heads, length, size = shape_of(result)
    start = index_tensor((batch, heads, length, size))
    expected = start.permute(0, 2, 1, 3).reshape(batch, length, heads * size)
    values = Evaluator(graph, {result: start})
    node = result
    while len(node.users) == 1:
        (node,) = node.users
        if not is_move(node) and not keeps_values(node):
            return Refusal(f"the result passes through {op_name(node)} before its heads are joined")
        found = values(node)
        if not isinstance(found, Tensor):
            return Refusal(f"the result passes through {op_name(node)} before its heads are joined")
        if found.shape == expected.shape and torch.equal(found, expected):
            return Gathered(node, None)
        joins = op_name(node) in {"view", "reshape", "_unsafe_view"}
        same = found.shape[-1] == heads * size and torch.equal(found.flatten(), expected.flatten())
        if joins and same:
            return Gathered(node, node.args[1])
    return Refusal("the result is read more than once before its heads are joined")
