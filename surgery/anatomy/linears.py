"""Linear reads: products of activations with weights, found in a graph and traced to parameters."""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

from torch import fx, nn

from surgery.anatomy.access import PARTS, read_otherwise
from surgery.anatomy.graph import Graph, is_tensor, module_path, op_name, shape_of
from surgery.anatomy.linear_patterns import PATTERNS
from surgery.anatomy.types import Access, Layout


@dataclass(frozen=True, eq=False)
class WeightView:
    """A parameter as the graph sees it: possibly transposed, possibly only some of its rows.

    ``source`` is its placeholder.
    """

    name: str
    source: fx.Node
    shape: tuple[int, ...]
    transposed: bool = False
    start: int = 0


@dataclass(frozen=True, eq=False)
class LinearRead:
    """One product of an activation with a weight.

    Attributes:
        node: The call that makes the product; its value carries the output channels.
        x: The activation.
        weight: Name of the parameter.
        layout: Where the parameter keeps its output channels.
        in_features: Input channels.
        out_features: Output channels of this read.
        weight_out_features: Output channels of the whole parameter.
        start: First output channel of the parameter that this read uses.
        channel_dims: Dimensions of the output channels in the value of ``node``, the slowest first.
        bias: The bias node, if the same call adds one.
        access: Whether the owning module's forward makes this call, and nobody reads the weight otherwise.
        source: The placeholder of the parameter.
        tied_to: Names under which other modules own the same tensor.
    """

    node: fx.Node
    x: fx.Node
    weight: str
    layout: Layout
    in_features: int
    out_features: int
    weight_out_features: int
    start: int
    channel_dims: tuple[int, ...]
    bias: fx.Node | None
    access: Access
    source: fx.Node
    tied_to: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        """Path of the module that owns the weight."""
        return self.weight.rpartition(".")[0]

    @property
    def parameter(self) -> str:
        """Name of the weight in its module."""
        return self.weight.rpartition(".")[2]


_TRANSPOSES = frozenset({"t", "numpy_T", "mT"})
_SAME = frozenset({"alias", "detach", "to", "_to_copy", "contiguous", "clone"})


class LinearReader:
    """Finds the linear reads of a graph, in graph order."""

    def __init__(self, graph: Graph, model: nn.Module) -> None:
        self.graph, self.model = graph, model
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.parameters = dict(model.named_parameters(remove_duplicate=False))
        self.owners: dict[int, list[str]] = {}
        for name, parameter in self.parameters.items():
            self.owners.setdefault(id(parameter), []).append(name)
        self.by_node: dict[fx.Node, LinearRead] = {}
        for node in graph.nodes:
            read = self._match(node)
            if read is not None:
                self.by_node[node] = read
        mixed = read_otherwise(self)
        for node, read in self.by_node.items():
            if read.weight in mixed and not read.tied_to:
                self.by_node[node] = replace(read, access=Access.PARAMETER)

    @cached_property
    def reads(self) -> tuple[LinearRead, ...]:
        """All linear reads in graph order."""
        return tuple(self.by_node.values())

    def _match(self, node: fx.Node) -> LinearRead | None:
        name = op_name(node)
        for pattern in PATTERNS:
            if name in pattern.ops:
                return pattern.match(node, self)
        return None

    def weight(self, node: object) -> WeightView | None:
        """Trace a weight argument back to its parameter through transposes, casts and row blocks."""
        if not isinstance(node, fx.Node):
            return None
        name = self.graph.tensor_name(node)
        if name is not None:
            return WeightView(name, node, shape_of(node))
        if node.op != "call_function" or node in self.graph.data or not is_tensor(node):
            return None
        return self._derived_weight(node)

    def _derived_weight(self, node: fx.Node) -> WeightView | None:
        op, source = op_name(node), node.args[0]
        if op == "getitem":
            return self._part(node)
        view = self.weight(source)
        if view is None or op in _SAME:
            return view
        if op in _TRANSPOSES or (op in {"transpose", "permute"} and len(view.shape) == 2):
            shape = shape_of(node)
            turned = replace(view, shape=shape, transposed=not view.transposed)
            return turned if shape == view.shape[::-1] else None
        if op == "slice" and _dim(node) == 0 and not view.transposed:
            start = node.args[2] if len(node.args) > 2 else 0
            start = start if isinstance(start, int) else 0
            return replace(view, shape=shape_of(node), start=view.start + start)
        return None

    def _part(self, node: fx.Node) -> WeightView | None:
        """``w.chunk(3)[1]``: one block of rows of a packed weight."""
        parts, index = node.args[:2]
        if node.target is not operator.getitem or not isinstance(parts, fx.Node):
            return None
        if op_name(parts) not in PARTS or not isinstance(index, int):
            return None
        whole = self.weight(parts.args[0])
        dim = parts.args[2] if len(parts.args) > 2 else parts.kwargs.get("dim", 0)
        if whole is None or whole.transposed or dim != 0:
            return None
        sizes = [part.shape[0] for part in parts.meta["val"]]
        return replace(whole, shape=shape_of(node), start=whole.start + sum(sizes[:index]))

    def build(
        self, node: fx.Node, x: object, view: WeightView, *, flip: bool, bias: object
    ) -> LinearRead | None:
        """A read whose output channels are the last dimension. ``flip``: the call computes x @ W."""
        in_out = flip != view.transposed
        first, second = view.shape
        features = (first, second) if flip else (second, first)
        layout = Layout.IN_OUT if in_out else Layout.OUT_IN
        return self._read(node, x, view, layout, features, (len(shape_of(node)) - 1,), bias)

    def build_conv(self, node: fx.Node, x: object, view: WeightView) -> LinearRead | None:
        """A read whose output channels are dimension 1."""
        out_features, in_features = view.shape[:2]
        bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
        return self._read(node, x, view, Layout.CONV, (in_features, out_features), (1,), bias)

    def build_einsum(
        self,
        node: fx.Node,
        x: object,
        view: WeightView,
        layout: Layout,
        channel_dims: tuple[int, ...],
    ) -> LinearRead | None:
        """A read of a weight of which one side may have several dimensions, as heads and their channels."""
        first, rest = view.shape[0], prod(view.shape[1:])
        features = (first, rest) if layout is Layout.IN_OUT else (rest, first)
        return self._read(node, x, view, layout, features, channel_dims, None)

    def _read(
        self,
        node: fx.Node,
        x: object,
        view: WeightView,
        layout: Layout,
        features: tuple[int, int],
        channel_dims: tuple[int, ...],
        bias: object,
    ) -> LinearRead | None:
        name, ties = self._owner(node, view.name)
        module, _, parameter = name.rpartition(".")
        owner = self.modules[module]
        weight = getattr(owner, parameter, None)
        if not isinstance(x, fx.Node) or not isinstance(weight, nn.Parameter):
            return None
        if x not in self.graph.data and self.weight(x) is not None:
            return None  # a product of two weights is no projection
        total = prod(weight.shape[1:]) if layout is Layout.IN_OUT else weight.shape[0]
        caller = self.modules.get(module_path(node))
        called = is_projection_module(owner, layout) and caller is owner
        access = Access.MODULE if called else Access.PARAMETER
        bias_node = bias if isinstance(bias, fx.Node) else None
        return LinearRead(
            node,
            x,
            name,
            layout,
            *features,
            total,
            view.start,
            channel_dims,
            bias_node,
            access,
            view.source,
            ties,
        )

    def _owner(self, node: fx.Node, name: str) -> tuple[str, tuple[str, ...]]:
        """The name under which the calling module owns the weight, and the names that are ties.

        One module registered at two places is not a tie, and goes by the first; one tensor in two modules is.
        """
        weight = _resolve(self.modules, name)
        names = self.owners.get(id(weight), [name])
        owners = {n: self.modules[n.rpartition(".")[0]] for n in names}
        caller = self.modules.get(module_path(node))
        chosen = next((n for n in names if owners[n] is caller), names[0])
        return chosen, tuple(n for n in names if owners[n] is not owners[chosen])


def is_projection_module(module: nn.Module, layout: Layout) -> bool:
    """Whether the module's forward is one linear projection: Linear, Conv1D, a convolution."""
    if layout is Layout.CONV:
        return isinstance(module, nn.Conv1d | nn.Conv2d)
    if layout is Layout.IN_OUT:
        return type(module).__name__ == "Conv1D" and not list(module.children())
    return isinstance(module, nn.Linear)


def _resolve(modules: dict[str, nn.Module], name: str) -> object:
    owner, _, parameter = name.rpartition(".")
    return getattr(modules[owner], parameter, None) if owner in modules else None


def _dim(node: fx.Node) -> int:
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    return dim if isinstance(dim, int) else 0
