"""Complex numbers as pairs of real ones, which is all that ONNX has: rotary embeddings are written so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from exporters.editor import Editor
from exporters.edits import insert_before
from exporters.patterns.base import is_move, keeps_values
from surgery.anatomy.graph import Graph, op_name

aten = torch.ops.aten

Pair = tuple[fx.Node, fx.Node]
"""Real and imaginary part."""


def write_real(program: ExportedProgram) -> None:
    """Let real operators compute what complex ones do, in place; a graph with unknown ones stays as it is.

    ``polar(r, a) = (r cos a, r sin a)`` and ``(a, b) (c, d) = (ac - bd, ad + bc)``; moves move both parts.
    Tables of complex numbers become two.
    """
    nodes = program.graph.nodes
    found = [node for node in nodes if node.op == "call_function" and _touches_complex(node)]
    if not found:
        return
    graph = Graph(program)
    if not all(_is_known(node, graph) for node in found):
        return
    pairs, real = _stored(graph), dict[fx.Node, fx.Node]()
    for node in found:
        result = _WRITERS.get(op_name(node), _moved)(_Operation(node, pairs))
        if isinstance(result, tuple):
            pairs[node] = result
        else:
            real[node] = result
    for node, result in real.items():
        node.replace_all_uses_with(result)
    for node in reversed(found):
        program.graph.erase_node(node)


def _is_known(node: fx.Node, graph: Graph) -> bool:
    """Whether it can be written: what it reads is computed here or a constant, and its operator has a writer."""
    read = [source for source in node.all_input_nodes if _is_complex(source)]
    if any(s.op != "call_function" and graph.constant(s) is None for s in read):
        return False
    if any(isinstance(arg, complex) for arg in node.args):
        return False
    if op_name(node) in _WRITERS:
        return True
    return (is_move(node) or keeps_values(node)) and read == [node.args[0]]


def _stored(graph: Graph) -> dict[fx.Node, Pair]:
    """The parts of every constant that is complex."""
    editor, pairs = Editor(graph.program), {}
    for node in graph.program.graph.find_nodes(op="placeholder"):
        value = graph.constant(node) if _is_complex(node) else None
        if value is not None:
            name = graph.tensor_name(node)
            parts = {"real": value.real.contiguous(), "imag": value.imag.contiguous()}
            real, imaginary = (editor.constant(f"{name}_{n}", v) for n, v in parts.items())
            pairs[node] = real, imaginary
    return pairs


@dataclass(frozen=True)
class _Operation:
    """One operator on complex numbers, and the parts of what it may read."""

    node: fx.Node
    pairs: Mapping[fx.Node, Pair]

    def put(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """A real operator in its place."""
        return insert_before(self.node, target, *args, **kwargs)

    def operand(self, number: int) -> Any:
        """The parts of an operand that is complex; any other as it is."""
        given = self.node.args[number]
        return self.pairs.get(given, given) if isinstance(given, fx.Node) else given


def _as_complex(op: _Operation) -> Pair:
    x = op.operand(0)
    return op.put(aten.select.int, x, -1, 0), op.put(aten.select.int, x, -1, 1)


def _as_real(op: _Operation) -> fx.Node:
    return op.put(aten.stack.default, list(op.operand(0)), -1)


def _polar(op: _Operation) -> Pair:
    length, angle = op.operand(0), op.operand(1)
    real, imaginary = op.put(aten.cos.default, angle), op.put(aten.sin.default, angle)
    return op.put(aten.mul.Tensor, real, length), op.put(aten.mul.Tensor, imaginary, length)


def _product(op: _Operation) -> Pair:
    x, y = op.operand(0), op.operand(1)
    if not isinstance(x, tuple):
        x, y = y, x
    if not isinstance(y, tuple):
        return op.put(aten.mul.Tensor, x[0], y), op.put(aten.mul.Tensor, x[1], y)
    (a, b), (c, d) = x, y
    ac, bd, ad, bc = (op.put(aten.mul.Tensor, *pair) for pair in ((a, c), (b, d), (a, d), (b, c)))
    return op.put(aten.sub.Tensor, ac, bd), op.put(aten.add.Tensor, ad, bc)


def _conjugate(op: _Operation) -> Pair:
    real, imaginary = op.operand(0)
    return real, op.put(aten.neg.default, imaginary)


def _moved(op: _Operation) -> Pair:
    """Moves and casts from complex to complex."""
    node, parts = op.node, op.operand(0)
    if not keeps_values(node):
        move: Any = node.target
        parts = (op.put(move, part, *node.args[1:], **node.kwargs) for part in parts)
    real, imaginary = parts
    return real, imaginary


_WRITERS: dict[str, Callable[[_Operation], Pair | fx.Node]] = {
    "view_as_complex": _as_complex,
    "view_as_real": _as_real,
    "polar": _polar,
    "complex": lambda op: (op.operand(0), op.operand(1)),
    "mul": _product,
    "_conj": _conjugate,
    "real": lambda op: op.operand(0)[0],
    "imag": lambda op: op.operand(0)[1],
}


def _is_complex(node: object) -> bool:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return isinstance(value, Tensor) and value.is_complex()


def _touches_complex(node: fx.Node) -> bool:
    return _is_complex(node) or any(map(_is_complex, node.all_input_nodes))
