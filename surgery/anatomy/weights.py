"""Weights as a graph sees them: transposed, cast, cut into parts, traced back to their parameters."""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from torch import fx

from surgery.anatomy.axes import REORDERS, reordered
from surgery.anatomy.graph import Graph, is_tensor, op_name, shape_of
from surgery.anatomy.types import Layout

_SAME = frozenset({"alias", "detach", "to", "_to_copy", "contiguous", "clone"})
PARTS = frozenset({"split", "split_with_sizes", "chunk", "tensor_split"})
"""Cut a tensor into a tuple of views."""


@dataclass(frozen=True, eq=False)
class WeightView:
    """A parameter as the graph sees it: possibly transposed, possibly only a part of it.

    Attributes:
        name: Name of the parameter.
        source: Its placeholder.
        kept: For each dimension of the parameter, the indices that are seen.
        transposed: Whether its two dimensions have changed places.
    """

    name: str
    source: fx.Node
    kept: tuple[range, ...]
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of what is seen."""
        sizes = tuple(len(indices) for indices in self.kept)
        return sizes[::-1] if self.transposed else sizes

    def part(self, dim: int, which: slice) -> WeightView:
        """Only some indices of dimension ``dim`` of what is seen."""
        dim %= len(self.kept)
        own = len(self.kept) - 1 - dim if self.transposed else dim
        kept = (*self.kept[:own], self.kept[own][which], *self.kept[own + 1 :])
        return replace(self, kept=kept)


def view_of(node: object, graph: Graph) -> WeightView | None:
    """Trace a weight argument back to its parameter through transposes, casts and cuts."""
    if not isinstance(node, fx.Node):
        return None
    name = graph.tensor_name(node)
    if name is not None:
        return WeightView(name, node, tuple(map(range, shape_of(node))))
    if node.op != "call_function" or node in graph.data or not is_tensor(node):
        return None
    return _part(node, graph) if op_name(node) == "getitem" else _derived(node, graph)


def _derived(node: fx.Node, graph: Graph) -> WeightView | None:
    op, view = op_name(node), view_of(node.args[0], graph)
    if view is None or op in _SAME:
        return view
    if op in REORDERS:
        order = reordered(node)
        turned = order == (1, 0)
        known = turned or order == (0, 1)
        return replace(view, transposed=view.transposed != turned) if known else None
    if op in {"slice", "narrow"}:
        cut = _cut(node)
        return view.part(*cut) if cut is not None else None
    return None


def _part(node: fx.Node, graph: Graph) -> WeightView | None:
    """``w.chunk(3)[1]``: one block of a packed weight."""
    parts, index = node.args[:2]
    if node.target is not operator.getitem or not isinstance(parts, fx.Node):
        return None
    if op_name(parts) not in PARTS or not isinstance(index, int):
        return None
    whole = view_of(parts.args[0], graph)
    dim = parts.args[2] if len(parts.args) > 2 else parts.kwargs.get("dim", 0)
    if whole is None or not isinstance(dim, int):
        return None
    sizes = [part.shape[dim] for part in parts.meta["val"]]
    start = sum(sizes[:index])
    return whole.part(dim, slice(start, start + sizes[index]))


def _cut(node: fx.Node) -> tuple[int, slice] | None:
    """The dimension and the indices that a slice or a narrow takes; None if values decide."""
    bounds: list[Any] = [*node.args[1:]]
    dim, start, stop, step = bounds + [0, None, None, 1][len(bounds) :]
    if op_name(node) == "narrow" and isinstance(start, int) and isinstance(stop, int):
        stop = start + stop or None  # a length, and a start that may count from the end
    known = all(bound is None or isinstance(bound, int) for bound in (start, stop, step))
    return (dim, slice(start, stop, step)) if known and isinstance(dim, int) else None


def output_channels(view: WeightView, shape: tuple[int, ...], layout: Layout) -> range | None:
    """The output channels that a view of a parameter of this shape shows.

    None if it cuts anything but the one dimension of the output channels: no rows are its own then.
    """
    outer = list(range(1, len(shape))) if layout is Layout.IN_OUT else [0]
    cut = [d for d, size in enumerate(shape) if view.kept[d] != range(size)]
    if not cut:
        return range(prod(shape[d] for d in outer))
    return view.kept[cut[0]] if cut == outer and len(cut) == 1 else None
