"""Complex numbers as pairs of real ones, which is all that ONNX has: rotary embeddings are written so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from exporters.edits import drop_unread, insert_before
from exporters.patterns.base import is_move, keeps_values
from exporters.rewrite import Rewriter
from surgery.anatomy.graph import Graph, op_name

aten = torch.ops.aten

Pair = tuple[fx.Node, fx.Node]
"""Real and imaginary part."""


class _UnknownError(Exception):
    """An operator on complex numbers that is not known here."""


def write_real(program: ExportedProgram) -> None:
    """Let real operators compute what complex ones do, in place; a graph with unknown ones stays as it is.

    ``polar(r, a) = (r cos a, r sin a)`` and ``(a, b) (c, d) = (ac - bd, ad + bc)``; moves move both parts.
    Tables of complex numbers become two.
    """
    graph = program.graph
    found = [node for node in graph.nodes if node.op == "call_function" and _touches_complex(node)]
    if not found:
        return
    pairs, real = _stored(program), dict[fx.Node, fx.Node]()
    try:
        for node in found:
            result = _WRITERS.get(op_name(node), _moved)(_Operation(node, pairs))
            if isinstance(result, tuple):
                pairs[node] = result
            else:
                real[node] = result
    except _UnknownError:
        drop_unread(graph)
        return
    for node, result in real.items():
        node.replace_all_uses_with(result)
    for node in reversed(found):
        graph.erase_node(node)


def _stored(program: ExportedProgram) -> dict[fx.Node, Pair]:
    """The parts of every constant that is complex."""
    graph, rewriter = Graph(program), Rewriter(program)
    pairs = {}
    for node in list(program.graph.nodes):
        value = graph.constant(node) if node.op == "placeholder" and _is_complex(node) else None
        if value is not None:
            name = graph.tensor_name(node)
            parts = {"real": value.real.contiguous(), "imag": value.imag.contiguous()}
            real, imaginary = (rewriter.constant(f"{name}_{n}", v) for n, v in parts.items())
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
        if not isinstance(given, fx.Node) or not _is_complex(given):
            return given
        if given not in self.pairs:
            raise _UnknownError  # an input of the model
        return self.pairs[given]

    def both(self, target: Callable[..., Any], *rest: Any, **kwargs: Any) -> Pair:
        """The same operator on both parts of the first operand."""
        real, imaginary = self.operand(0)
        return self.put(target, real, *rest, **kwargs), self.put(target, imaginary, *rest, **kwargs)


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
    if isinstance(y, complex):
        raise _UnknownError
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
    node = op.node
    if not _is_complex(node.args[0]) or any(map(_is_complex, node.all_input_nodes[1:])):
        raise _UnknownError
    if keeps_values(node):
        pair: Pair = op.operand(0)
        return pair
    if not is_move(node):
        raise _UnknownError
    return op.both(node.target, *node.args[1:], **node.kwargs)  # type: ignore[arg-type]


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
