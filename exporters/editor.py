"""Editing an exported program by hand: operators, constants, what stands in whose place."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument

from exporters.edits import drop_unread, free_name
from exporters.patterns.base import keeps_values

aten = torch.ops.aten
Size = fx.Node | int


class Editor:
    """Edits the graph of one program in place; weights that exist are never written to."""

    def __init__(self, program: ExportedProgram) -> None:
        self.program, self.graph = program, program.graph
        self._constants: list[tuple[Tensor, fx.Node]] = []
        self._replaced: dict[fx.Node, fx.Node] = {}

    def before(self, node: fx.Node) -> AbstractContextManager[Any]:
        """New nodes made inside stand before ``node``."""
        context: AbstractContextManager[Any] = self.graph.inserting_before(node)
        return context

    def node(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """Call an operator here; arguments that were replaced since they were found are looked up."""
        args, kwargs = fx.node.map_arg((args, kwargs), self.current)
        made: fx.Node = self.graph.call_function(target, args, kwargs)
        return made

    def replace(self, old: fx.Node, new: fx.Node) -> None:
        """Let every reader of ``old`` read ``new``."""
        old.replace_all_uses_with(new)
        self._replaced[old] = new

    def current(self, node: fx.Node) -> fx.Node:
        """What stands in a node's place by now."""
        return self._replaced.get(node, node)

    def return_instead(self, old: fx.Node, new: fx.Node) -> None:
        """Let the graph return ``new`` where it returned ``old`` or handed it on; other readers stay."""
        old.replace_all_uses_with(new, delete_user_cb=lambda user: user.op == "output")
        for user in list(old.users):
            if keeps_values(user) and user.args[0] is old:
                self.return_instead(user, new)

    def fused(
        self,
        kind: tuple[str, str],
        inputs: Sequence[fx.Node | None],
        attributes: Mapping[str, Any],
        shape: Sequence[Size],
    ) -> fx.Node:
        """Call an operator of ONNX Runtime here; trailing inputs that are None are left out.

        Args:
            kind: Domain and type.
            inputs: In the operator's own order.
            attributes: Likewise, by name.
            shape: Of its one float32 output.
        """
        return self.node(
            torch.onnx.ops.symbolic,
            "::".join(kind),
            _given(inputs),
            dict(attributes),
            dtype=torch.float32,
            shape=list(shape),
            version=1,
        )

    def fused_all(
        self,
        kind: tuple[str, str],
        inputs: Sequence[fx.Node | None],
        attributes: Mapping[str, Any],
        shapes: Sequence[Sequence[Size]],
    ) -> list[fx.Node]:
        """The same for an operator of several float32 outputs, one shape each."""
        made = self.node(
            torch.onnx.ops.symbolic_multi_out,
            "::".join(kind),
            _given(inputs),
            dict(attributes),
            dtypes=[torch.float32] * len(shapes),
            shapes=[list(shape) for shape in shapes],
            version=1,
        )
        return [self.node(operator.getitem, made, i) for i in range(len(shapes))]

    def sizes(self, x: fx.Node, *dims: int) -> list[Size]:
        """Some sizes of a tensor: numbers where they are fixed, nodes where they are dynamic."""
        found = [(x.meta["val"].shape[dim], dim) for dim in dims]
        return [size if isinstance(size, int) else self._size(x, dim, size) for size, dim in found]

    def _size(self, x: fx.Node, dim: int, size: torch.SymInt) -> fx.Node:
        node = self.node(aten.sym_size.int, x, dim)
        node.meta["val"] = size
        return node

    def constant(self, name: str, value: Tensor) -> fx.Node:
        """Add a constant to the program; equal ones (a layer used many times) are added once."""
        for known, node in self._constants:
            if torch.equal(known, value):
                return node
        node = self.parameter(self._free_name(name.lstrip(".")), value)
        self._constants.append((value, node))
        return node

    def _free_name(self, name: str) -> str:
        specs = self.program.graph_signature.input_specs
        targets = (spec.target for spec in specs if spec.target is not None)
        return free_name(name, {*self.program.state_dict, *self.program.constants, *targets})

    def linear(self, name: str, x: fx.Node, weight: Tensor, bias: Tensor | None) -> fx.Node:
        """``x weight^T + bias`` here, its constants named after ``name``."""
        matrix = self.constant(f"{name}.weight", weight)
        vector = None if bias is None else self.constant(f"{name}.bias", bias)
        return self.node(aten.linear.default, x, matrix, vector)

    def parameter(self, name: str, value: Tensor) -> fx.Node:
        """Add a constant of a name of its own.

        Constants are inputs of the graph that stand before the user's and are listed in the
        signature.
        """
        specs = self.program.graph_signature.input_specs
        position = next(i for i, s in enumerate(specs) if s.kind is InputKind.USER_INPUT)
        nodes = [n for n in self.graph.nodes if n.op == "placeholder"]
        with self.graph.inserting_before(nodes[position]):
            node: fx.Node = self.graph.placeholder(f"c_{name.replace('.', '_')}")
        fake_mode = nodes[position].meta["val"].fake_mode
        node.meta["val"] = fake_mode.from_tensor(value, static_shapes=True)
        argument = TensorArgument(name=node.name)
        specs.insert(position, InputSpec(InputKind.CONSTANT_TENSOR, argument, name))
        self.program.constants[name] = value
        return node

    def finish(self) -> None:
        """Drop what the fused operators made superfluous."""
        drop_unread(self.graph)
        self.graph.lint()
        self.program.graph_module.recompile()


def _given(inputs: Sequence[fx.Node | None]) -> list[fx.Node | None]:
    """Without those at the end that are None."""
    given = list(inputs)
    while given[-1] is None:
        given.pop()
    return given
