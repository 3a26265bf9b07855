"""Linear reads: products of activations with weights, found in a graph and traced to parameters."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

from torch import fx, nn

from surgery.anatomy.access import read_otherwise
from surgery.anatomy.graph import Graph, module_path, op_name, shape_of
from surgery.anatomy.linear_patterns import PATTERNS
from surgery.anatomy.types import Access, Layout, Rows, run
from surgery.anatomy.weights import WeightView, output_channels, view_of


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
        channels: The output channels of the parameter that this read uses.
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
    channels: range
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

    @property
    def rows(self) -> Rows:
        """Its channels as one run."""
        return (run(self.channels),)


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
        self.unread: dict[fx.Node, str] = {}  # products with a weight that no projection can name
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
        """What part of which parameter a weight argument is, or None."""
        return view_of(node, self.graph)

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
        caller = self.modules.get(module_path(node))
        called = is_projection_module(owner, layout) and caller is owner
        if not called and x not in self.graph.data and self.weight(x) is not None:
            return None  # a product of two weights is no projection, a layer applied to one is
        channels = output_channels(view, tuple(weight.shape), layout)
        if channels is None:
            self.unread[node] = (
                f"it reads {name} by other parts than its output channels: no role can name them"
            )
            return None
        access = Access.MODULE if called else Access.PARAMETER
        bias_node = bias if isinstance(bias, fx.Node) else None
        return LinearRead(
            node,
            x,
            name,
            layout,
            *features,
            prod(weight.shape[1:]) if layout is Layout.IN_OUT else weight.shape[0],
            channels,
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
