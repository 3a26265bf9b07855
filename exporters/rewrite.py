"""Putting fused operators and new constants into an exported program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument

from exporters.patterns.attention import AttentionMatch
from exporters.patterns.scores import Replay

aten = torch.ops.aten


class Rewriter:
    """Edits the graph of one program in place; weights that exist are never written to."""

    def __init__(self, program: ExportedProgram) -> None:
        self.program, self.graph = program, program.graph
        self._masks: dict[fx.Node, fx.Node] = {}
        self._constants: list[tuple[Tensor, fx.Node]] = []

    def attention(self, match: AttentionMatch, module: str) -> None:
        """Replace one site by ``com.microsoft::Attention``.

        Its inputs are: activation, weight, bias, padding mask, past, additive bias.
        """
        target = match.gathered.node
        weight = self._constant(f"{module}.attention.weight", match.weight)
        bias = (
            None if match.bias is None else self._constant(f"{module}.attention.bias", match.bias)
        )
        padding, addend = self._padding(match.mask.padding), self._addend(match)
        with self.graph.inserting_before(target):
            node = self._operator(match, [match.x, weight, bias, padding, None, addend])
            if match.gathered.reshape is not None:
                node = self._node(aten.reshape.default, node, match.gathered.reshape)
        target.replace_all_uses_with(node)

    def finish(self) -> None:
        """Drop what the fused operators made superfluous."""
        self.graph.eliminate_dead_code()
        self.graph.lint()
        self.program.graph_module.recompile()

    def _operator(self, match: AttentionMatch, inputs: list[fx.Node | None]) -> fx.Node:
        while inputs[-1] is None:
            inputs.pop()
        attributes = {
            "num_heads": match.heads,
            "qkv_hidden_sizes": list(match.sizes),
            "scale": match.scale,
            "unidirectional": int(match.mask.causal),
        }
        shape = [*self._sizes(match.x), match.sizes[2]]
        return self._node(
            torch.onnx.ops.symbolic,
            "com.microsoft::Attention",
            inputs,
            attributes,
            dtype=torch.float32,
            shape=shape,
            version=1,
        )

    def _sizes(self, x: fx.Node) -> list[fx.Node | int]:
        """Batch and length: numbers where they are fixed, nodes where they are dynamic."""
        return [
            size if isinstance(size, int) else self._node(aten.sym_size.int, x, dim)
            for dim, size in enumerate(x.meta["val"].shape[:2])
        ]

    def _padding(self, tokens: fx.Node | None) -> fx.Node | None:
        """The padding mask in the type that the operator takes."""
        if tokens is None:
            return None

        def cast() -> fx.Node:
            return self._node(aten._to_copy.default, tokens, dtype=torch.int32)

        return self._once(tokens, cast)

    def _addend(self, match: AttentionMatch) -> fx.Node | None:
        """A mask as something to add: a boolean one becomes 0 where it keeps, the lowest number elsewhere."""
        mask = match.mask.bias
        if isinstance(mask, Replay):
            return self._replay(mask, match)
        if mask is None or mask.meta["val"].dtype is not torch.bool:
            return mask

        def convert() -> fx.Node:
            kept = self._node(aten._to_copy.default, mask, dtype=torch.float32)
            hidden = self._node(aten.sub.Tensor, kept, 1)
            return self._node(aten.mul.Tensor, hidden, torch.finfo(torch.float32).max)

        return self._once(mask, convert)

    def _replay(self, mask: Replay, match: AttentionMatch) -> fx.Node:
        """Run zeros through everything that happens to the scores."""
        with self.graph.inserting_before(match.gathered.node):
            batch, length = self._sizes(match.x)
            shape = [batch, match.heads, length, length]
            copies = {mask.product: self._node(aten.full.default, shape, 0.0)}
            for node in mask.nodes:
                copies[node] = self.graph.node_copy(node, lambda n: copies.get(n, n))
        return copies[mask.nodes[-1]]

    def _node(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        node: fx.Node = self.graph.call_function(target, args, kwargs)
        return node

    def _once(self, mask: fx.Node, make: Callable[[], fx.Node]) -> fx.Node:
        """Convert a mask right behind its node, or hand out what was made before: layers share masks."""
        if mask not in self._masks:
            # Placeholders must stay together at the top of the graph.
            first = next(n for n in self.graph.nodes if n.op != "placeholder")
            with self.graph.inserting_before(first if mask.op == "placeholder" else mask.next):
                self._masks[mask] = make()
        return self._masks[mask]

    def _constant(self, name: str, value: Tensor) -> fx.Node:
        """Add a constant to the program; equal ones (a layer used many times) are added once."""
        for known, node in self._constants:
            if torch.equal(known, value):
                return node
        taken = name in self.program.constants
        node = self._lift(f"{name}.{len(self._constants)}" if taken else name, value)
        self._constants.append((value, node))
        return node

    def _lift(self, name: str, value: Tensor) -> fx.Node:
        """Constants are inputs of the graph that stand before the user's and are listed in the signature."""
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
