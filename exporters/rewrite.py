"""Putting fused operators and new constants into an exported program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument

from exporters.patterns.attention import AttentionMatch

aten = torch.ops.aten


class Rewriter:
    """Edits the graph of one program in place; weights that exist are never written to."""

    def __init__(self, program: ExportedProgram) -> None:
        self.program, self.graph = program, program.graph
        self._made: dict[tuple[Any, ...], fx.Node] = {}

    def attention(self, match: AttentionMatch, module: str) -> None:
        """Replace one site by ``com.microsoft::Attention``.

        Its inputs are: activation, weight, bias, padding mask, past, additive bias.
        """
        target = match.gathered.node
        weight = self._constant(f"{module}.attention.weight", match.weight)
        bias = None if match.bias is None else self._constant(f"{module}.attention.bias", match.bias)
        padding, addend = self._padding(match.mask.padding), self._addend(match.mask.bias)
        with self.graph.inserting_before(target):
            node = self._call(match, [match.x, weight, bias, padding, None, addend])
            if match.gathered.reshape is not None:
                node = self.graph.call_function(
                    aten.reshape.default, (node, match.gathered.reshape)
                )
        node.meta["val"] = target.meta["val"]
        target.replace_all_uses_with(node)

    def finish(self) -> None:
        """Drop what the fused operators made superfluous."""
        self.graph.eliminate_dead_code()
        self.graph.lint()
        self.program.graph_module.recompile()

    def _call(self, match: AttentionMatch, inputs: list[fx.Node | None]) -> fx.Node:
        while inputs[-1] is None:
            inputs.pop()
        sizes = [self.graph.call_function(aten.sym_size.int, (match.x, dim)) for dim in (0, 1)]
        attributes = {
            "num_heads": match.heads,
            "qkv_hidden_sizes": list(match.sizes),
            "scale": match.scale,
            "unidirectional": int(match.mask.causal),
        }
        return self.graph.call_function(
            torch.onnx.ops.symbolic,
            ("com.microsoft::Attention", inputs, attributes),
            {"dtype": torch.float32, "shape": [*sizes, match.sizes[2]], "version": 1},
        )

    def _padding(self, tokens: fx.Node | None) -> fx.Node | None:
        """The padding mask in the type that the operator takes."""
        if tokens is None:
            return None

        def cast() -> fx.Node:
            return self.graph.call_function(
                aten._to_copy.default, (tokens,), {"dtype": torch.int32}
            )

        return self._once(("padding", tokens), tokens, cast)

    def _addend(self, mask: fx.Node | None) -> fx.Node | None:
        """A mask as something to add: a boolean one becomes 0 where it keeps, the lowest number elsewhere."""
        if mask is None or mask.meta["val"].dtype is not torch.bool:
            return mask

        def convert() -> fx.Node:
            call = self.graph.call_function
            kept = call(aten._to_copy.default, (mask,), {"dtype": torch.float32})
            hidden = call(aten.sub.Tensor, (kept, 1))
            return call(aten.mul.Tensor, (hidden, torch.finfo(torch.float32).max))

        return self._once(("addend", mask), mask, convert)

    def _once(self, key: tuple[Any, ...], after: fx.Node, make: Callable[[], fx.Node]) -> fx.Node:
        """Make a node behind ``after``, or hand out the one made before: layers share masks."""
        if key not in self._made:
            # Placeholders must stay together at the top of the graph.
            first = next(n for n in self.graph.nodes if n.op != "placeholder")
            point = first if after.op == "placeholder" else after.next
            with self.graph.inserting_before(point):
                self._made[key] = make()
        return self._made[key]

    def _constant(self, name: str, value: Tensor) -> fx.Node:
        """Add a constant to the program; equal ones (a layer used many times) are added once."""
        key = ("constant", tuple(value.shape), value.double().sum().item(), value.flatten()[0].item())
        if key not in self._made:
            self._made[key] = self._lift(name, value)
        return self._made[key]

    def _lift(self, name: str, value: Tensor) -> fx.Node:
        """Constants are inputs of the graph that stand before the user's and are listed in the signature."""
        specs = self.program.graph_signature.input_specs
        position = next(i for i, s in enumerate(specs) if s.kind is InputKind.USER_INPUT)
        nodes = [n for n in self.graph.nodes if n.op == "placeholder"]
        with self.graph.inserting_before(nodes[position]):
            node = self.graph.placeholder(f"c_{name.replace('.', '_')}")
        fake_mode = nodes[position].meta["val"].fake_mode
        node.meta["val"] = fake_mode.from_tensor(value, static_shapes=True)
        argument = TensorArgument(name=node.name)
        specs.insert(position, InputSpec(InputKind.CONSTANT_TENSOR, argument, name))
        self.program.constants[name] = value
        return node
