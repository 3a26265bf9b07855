"""Places in a graph where low-rank factors and trained values can be fed at run time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
import torch
from torch import fx

from exporters.capture import Captured
from exporters.editor import Editor
from exporters.learned import A_NAME, B_NAME, Learned, unhookable
from exporters.patterns.heads import linear_parts
from surgery.anatomy.graph import Graph

_RANK = 3
"""Any rank will do while the graph is made; afterwards it is a dynamic dimension."""

aten = torch.ops.aten


def insert(captured: Captured, learned: Learned) -> None:
    """Add ``x A B`` to every product with an adapted weight, in place.

    What else trained gets random values until :func:`expose`: a fresh head's bias is zero, and the
    exporter drops what adds nothing.

    Raises:
        ExportError: If the graph reads an adapted weight in another way.
    """
    graph = Graph(captured.program)
    editor = Editor(captured.program)
    for name, (b, a) in learned.factors.items():
        linears = list(_linears(name, graph))
        down = editor.parameter(A_NAME.format(name), torch.randn(a.shape[1], _RANK))
        up = editor.parameter(B_NAME.format(name), torch.randn(_RANK, b.shape[0]))
        for linear, x in linears:
            with editor.before(linear.next):
                delta = editor.node(aten.matmul.default, x, down)
                delta = editor.node(aten.matmul.default, delta, up)
                total = editor.node(aten.add.Tensor, linear, delta)
            total.meta = dict(linear.meta)
            linear.replace_all_uses_with(total, delete_user_cb=lambda user, t=total: user is not t)  # type: ignore[misc]
    for name, value in learned.untrained.items():
        random = torch.nn.Parameter(torch.randn_like(value), requires_grad=False)
        captured.program.state_dict[name] = random
    editor.finish()


def _linears(name: str, graph: Graph) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Every product with a weight: the node and its input."""
    (weight,) = (n for n in graph.program.graph.nodes if graph.tensor_name(n) == name)
    for user in weight.users:
        parts = linear_parts(user)
        if parts is None or parts[1] is not weight or not isinstance(parts[0], fx.Node):
            raise unhookable(name, f"the graph reads the weight by {user.name}, not as a product")
        yield user, parts[0]


def expose(model: ir.Model, learned: Learned) -> None:
    """Make the factors inputs with defaults: rank 0, which is no adapter; likewise what else trained.

    Raises:
        ExportError: If a trained value is not in the graph under its own name any more.
    """
    graph = model.graph
    for number, (name, (b, a)) in enumerate(learned.factors.items()):
        rank = ir.SymbolicDim(f"rank_{number}")
        down = graph.initializers[A_NAME.format(name)]
        up = graph.initializers[B_NAME.format(name)]
        for node in down.consumers():
            (delta,) = node.outputs
            assert delta.shape is not None
            delta.shape = ir.Shape([*delta.shape[:-1], rank])
        _empty(down, ir.Shape([a.shape[1], rank]))
        _empty(up, ir.Shape([rank, b.shape[0]]))
        graph.inputs.extend([down, up])
    for name, value in learned.untrained.items():
        if name not in graph.initializers:
            raise unhookable(name, "it was folded into another constant of the graph")
        graph.initializers[name].const_value = ir.tensor(value.numpy(), name=name)
        graph.inputs.append(graph.initializers[name])


def _empty(value: ir.Value, shape: ir.Shape) -> None:
    sizes = [size if isinstance(size, int) else 0 for size in shape]
    value.shape = shape
    value.const_value = ir.tensor(np.zeros(sizes, np.float32), name=value.name)
