"""Putting fused operators and new constants into an exported program."""

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
from exporters.patterns.scores import Replay
from surgery.anatomy.graph import op_name, shape_of

aten = torch.ops.aten
Size = fx.Node | int


class Rewriter:
    """Edits the graph of one program in place; weights that exist are never written to."""

    def __init__(self, program: ExportedProgram) -> None:
        self.program, self.graph = program, program.graph
        self._masks: dict[object, fx.Node] = {}
        self._lengths: dict[object, tuple[fx.Node, fx.Node]] = {}
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
        given = list(inputs)
        while given[-1] is None:
            given.pop()
        return self.node(
            torch.onnx.ops.symbolic,
            "::".join(kind),
            given,
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
        given = list(inputs)
        while given[-1] is None:
            given.pop()
        made = self.node(
            torch.onnx.ops.symbolic_multi_out,
            "::".join(kind),
            given,
            dict(attributes),
            dtypes=[torch.float32] * len(shapes),
            shapes=[list(shape) for shape in shapes],
            version=1,
        )
        return [self.node(operator.getitem, made, i) for i in range(len(shapes))]

    def counted(self, tokens: fx.Node, length: Size) -> tuple[fx.Node, fx.Node]:
        """Where each row's last new key goes, and the padding mask's length; int32.

        The ``length`` new ones follow the tokens that the mask counts before them. Padding among them stands
        behind, where nobody looks, and the next tokens take its place.
        """

        def make() -> tuple[fx.Node, fx.Node]:
            total = self.node(aten.sym_size.int, tokens, 1)
            before = self.node(operator.sub, total, length)
            old = self.node(aten.slice.Tensor, tokens, 1, 0, before)
            count = self.node(aten.sum.dim_IntList, old, [1])
            last = self.node(aten.add.Tensor, count, self.node(operator.sub, length, 1))
            return self._int32(last), self._scalar(total)

        return self._first(tokens, make)

    def full_lengths(self, batch: Size, total: Size) -> tuple[fx.Node, fx.Node]:
        """The same where every row has ``total`` keys."""

        def make() -> tuple[fx.Node, fx.Node]:
            length = self._scalar(total)
            last = self.node(aten.sub.Tensor, length, 1)
            return self.node(aten.expand.default, last, [batch]), length

        key = tuple(str(n if isinstance(n, int) else n.meta["val"]) for n in (batch, total))
        return self._first(key, make)

    def sizes(self, x: fx.Node, *dims: int) -> list[Size]:
        """Some sizes of a tensor: numbers where they are fixed, nodes where they are dynamic."""
        found = [(x.meta["val"].shape[dim], dim) for dim in dims]
        return [size if isinstance(size, int) else self._size(x, dim, size) for size, dim in found]

    def _size(self, x: fx.Node, dim: int, size: torch.SymInt) -> fx.Node:
        node = self.node(aten.sym_size.int, x, dim)
        node.meta["val"] = size
        return node

    def padding(self, tokens: fx.Node | None) -> fx.Node | None:
        """The padding mask in the type that the operators take."""
        if tokens is None:
            return None

        def cast() -> fx.Node:
            return self._int32(tokens)

        return self.once(tokens, tokens, cast)

    def addend(self, mask: fx.Node | Replay | None, scores: Sequence[Size]) -> fx.Node | None:
        """A mask as something to add to the scores.

        Args:
            mask: A boolean one becomes 0 where it keeps, the lowest number elsewhere; a replay runs
                zeros through everything that happens to the scores.
            scores: Their shape, (batch, heads, length, length).
        """
        if mask is None:
            return None
        if isinstance(mask, Replay):
            return self._replay(mask, scores)
        return self._spread(self.once(mask, mask, lambda: self._as_addend(mask)), mask, scores)

    def once(self, key: object, mask: fx.Node, make: Callable[[], fx.Node]) -> fx.Node:
        """Make something of a mask right behind its node, or hand out what was made before: layers share masks."""
        if key not in self._masks:
            # Placeholders must stay together at the top of the graph.
            first = next(n for n in self.graph.nodes if n.op != "placeholder")
            with self.graph.inserting_before(first if mask.op == "placeholder" else mask.next):
                self._masks[key] = make()
        return self._masks[key]

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

    def _as_addend(self, mask: fx.Node) -> fx.Node:
        dtype = mask.meta["val"].dtype
        if dtype is torch.float32:
            return mask
        kept = self.node(aten._to_copy.default, mask, dtype=torch.float32)
        if dtype is not torch.bool:
            return kept
        hidden = self.node(aten.sub.Tensor, kept, 1)
        return self.node(aten.mul.Tensor, hidden, torch.finfo(torch.float32).max)

    def _spread(self, addend: fx.Node, mask: fx.Node, scores: Sequence[Size]) -> fx.Node:
        """The operators broadcast over batch and heads alone, and take four dimensions."""
        shape = shape_of(mask)
        for _ in range(4 - len(shape)):
            addend = self.node(aten.unsqueeze.default, addend, 0)
        if len(shape) > 1 and 1 not in shape[-2:]:
            return addend
        return self.node(aten.expand.default, addend, [-1, -1, *scores[2:]])

    def _replay(self, mask: Replay, scores: Sequence[Size]) -> fx.Node:
        product = mask.product
        sizes = scores[-len(shape_of(product)) :]
        if len(sizes) == 3:  # one head a row: (batch, length, length)
            sizes = [scores[0], *scores[2:]]
        copies = {product: self._zero_scores(product, sizes)}
        for node in mask.nodes:
            copies[node] = self.graph.node_copy(node, lambda n: copies.get(n) or self.current(n))
        last = copies[(product, *mask.nodes)[-1]]
        return last if len(sizes) == 4 else self.node(aten.reshape.default, last, list(scores))

    def _zero_scores(self, product: fx.Node, sizes: Sequence[Size]) -> fx.Node:
        """What a product of zeros gives: zeros, or what ``baddbmm`` adds to it."""
        if op_name(product) == "baddbmm":
            return self.node(aten.expand.default, product.args[0], list(sizes))
        return self.node(aten.full.default, list(sizes), 0.0)

    def _int32(self, x: fx.Node) -> fx.Node:
        return self.node(aten._to_copy.default, x, dtype=torch.int32)

    def _scalar(self, size: Size) -> fx.Node:
        return self.node(aten.scalar_tensor.default, size, dtype=torch.int32)

    def _first(
        self, key: object, make: Callable[[], tuple[fx.Node, fx.Node]]
    ) -> tuple[fx.Node, fx.Node]:
        """Make something here, or hand out what an earlier site has made: sites are written in order."""
        if key not in self._lengths:
            self._lengths[key] = make()
        return self._lengths[key]
