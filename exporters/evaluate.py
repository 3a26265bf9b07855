"""Running small parts of a graph for real: index tensors through moves, constants, masks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from surgery.anatomy.graph import Graph, is_open, op_name, size_of


class NotConstantError(Exception):
    """The walk reached a value that is neither known nor a constant of the program."""


class Evaluator:
    """Computes nodes from known values; parameters and sizes are known by themselves.

    Args:
        graph: The program the nodes belong to.
        known: Values to start from.
        transparent: Nodes that hand on their first tensor unchanged, whatever they compute.
        sizes: Size of a dynamic dimension, by its symbol, where it is not the one captured.
    """

    def __init__(
        self,
        graph: Graph,
        known: Mapping[fx.Node, Any] | None = None,
        transparent: Collection[fx.Node] = (),
        sizes: Mapping[sympy.Symbol, int] | None = None,
    ) -> None:
        self.graph, self.transparent = graph, transparent
        self.sizes = {symbol: sympy.Integer(size) for symbol, size in (sizes or {}).items()}
        self.values: dict[fx.Node, Any] = dict(known or {})

    def __call__(self, node: fx.Node) -> Any:
        """The value of ``node``.

        Raises:
            NotConstantError: If it depends on an input of the model that is not known.
        """
        if node not in self.values:
            self.values[node] = self._compute(node)
        return self.values[node]

    def size(self, size: int | torch.SymInt) -> int:
        """A size as a number.

        Raises:
            NotConstantError: If it follows from values that are not known.
        """
        if isinstance(size, int):
            return size
        found = size.node.expr.xreplace(self.sizes)
        if found.is_number:
            return int(found)
        if is_open(size):
            raise NotConstantError(str(found))
        return size_of(size)

    def _compute(self, node: fx.Node) -> Any:
        value = node.meta.get("val")
        if isinstance(value, int | torch.SymInt):
            return self.size(value)
        if node.op == "placeholder":
            return self._stored(node)
        # What ends in _remove_batch_dim began inside vmap, where no node can be run by itself.
        if node.op != "call_function" or op_name(node) == "_remove_batch_dim":
            raise NotConstantError(node.name)
        if node in self.transparent:
            return self(node.all_input_nodes[0])
        args: Any = fx.node.map_arg(node.args, self)
        kwargs = fx.node.map_arg(dict(node.kwargs), self)
        if node.target is torch.ops.aten.view.default:
            # The values given here may lie in memory otherwise than those of the model.
            return args[0].reshape(args[1])
        with torch.no_grad():
            return node.target(*args, **kwargs)  # type: ignore[operator]

    def _stored(self, node: fx.Node) -> Tensor:
        stored = self.graph.constant(node)
        if stored is None:
            raise NotConstantError(node.name)
        return stored.detach()


class Constants(Evaluator):
    """Computes what neither inputs nor dynamic sizes change."""

    def size(self, size: int | torch.SymInt) -> int:
        """A size as a number.

        Raises:
            NotConstantError: If it is dynamic.
        """
        found = size if isinstance(size, int) else size.node.maybe_as_int()
        if found is None:
            raise NotConstantError(str(size))
        return int(found)


def index_tensor(shape: tuple[int, ...]) -> Tensor:
    """Every element holds its own position: moving it through a graph shows where each value goes."""
    return torch.arange(torch.Size(shape).numel()).reshape(shape)
