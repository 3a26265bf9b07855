"""LayerScale: a learned factor for each channel of a linear's output, multiplied into its weight."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, fx

from exporters.editor import Editor
from exporters.evaluate import Constants, NotConstantError
from exporters.patterns.base import Refusal, keeps_values
from exporters.patterns.heads import linear_parts, weights_of
from surgery.anatomy.graph import Graph, op_name, shape_of


@dataclass(frozen=True, eq=False)
class LayerScaleMatch:
    """A linear and the product behind it.

    Attributes:
        x: Input of the linear.
        product: The node to replace.
        weight: (out, in), the factors multiplied in.
        bias: (out,) likewise, or None.
    """

    x: fx.Node
    product: fx.Node
    weight: Tensor
    bias: Tensor | None

    def write(self, editor: Editor) -> None:
        """Put one linear in place of both."""
        with editor.before(self.product):
            linear = editor.linear(self.product.name, self.x, self.weight, self.bias)
        editor.replace(self.product, linear)


class LayerScalePattern:
    """``gamma * linear(x)`` with a constant vector, nothing but inactive dropout between the two."""

    def match(self, node: fx.Node, graph: Graph) -> LayerScaleMatch | Refusal:
        """Match at a product, or say what is in the way."""
        sides = [arg for arg in node.args if isinstance(arg, fx.Node)]
        scaled = [side for side in sides if side in graph.data]
        if op_name(node) != "mul" or len(sides) != 2 or len(scaled) != 1:
            return Refusal("not a product of an activation with a constant")
        linear = _linear_behind(scaled[0])
        if linear is None:
            return Refusal("no linear of its own behind the product")
        (gamma,) = (side for side in sides if side is not scaled[0])
        constants = Constants(graph)
        try:
            factors = constants(gamma)
        except NotConstantError as error:
            return Refusal(f"{error} is no constant")
        found = weights_of(linear, constants)
        if isinstance(found, Refusal):
            return Refusal(f"the linear has {found.why}")
        weight, bias = found
        one_each = factors.numel() == factors.shape[-1:].numel() == len(weight)
        if not one_each or shape_of(node) != shape_of(scaled[0]):
            return Refusal(f"the factors have shape {tuple(factors.shape)}")
        factors = factors.flatten()
        scaled_bias = None if bias is None else bias * factors
        return LayerScaleMatch(linear[0], node, weight * factors[:, None], scaled_bias)


def _linear_behind(node: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node | None, bool] | None:
    """Input, weight, bias and orientation of the linear that feeds this node alone."""
    while len(node.users) == 1 and keeps_values(node):
        node = node.all_input_nodes[0]
    parts = linear_parts(node) if len(node.users) == 1 else None
    if parts is None or len(shape_of(node)) < 2:
        return None
    x, weight, bias, in_out = parts
    nodes = isinstance(x, fx.Node) and isinstance(weight, fx.Node)
    if not nodes or not (bias is None or isinstance(bias, fx.Node)):
        return None
    return x, weight, bias, in_out  # type: ignore[return-value]
