"""Rotary embeddings, proven by running them: what is rotated, and by which cosines and sines."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx

from exporters.axes import BATCH, SEQUENCE
from exporters.causal import MASK, PAST_SEQUENCE, TOTAL_SEQUENCE
from exporters.edits import placeholders
from exporters.evaluate import Evaluator, NotConstantError
from exporters.inputs import Inputs
from exporters.patterns.base import Refusal, keeps_values
from exporters.patterns.masks import axes_of
from surgery.anatomy.graph import Graph, op_name, shape_of

_CLOSE = 1e-5
_SHORTEST = 2  # torch.export takes a dynamic length for 2 or more


@dataclass(frozen=True, eq=False)
class Tables:
    """Cosines and sines by position.

    Attributes:
        cos, sin: (positions, pairs); channels beyond the pairs stay as they are.
        interleaved: Whether a pair is two neighbours; else one of the first half and one of the second.
    """

    cos: Tensor
    sin: Tensor
    interleaved: bool

    def rotate(self, x: Tensor, positions: slice) -> Tensor:
        """Rotate (..., length, size)."""
        cos, sin = self.cos[positions], self.sin[positions]
        turned, rest = x[..., : 2 * cos.shape[-1]], x[..., 2 * cos.shape[-1] :]
        pairs = turned.reshape(*x.shape[:-1], *((-1, 2) if self.interleaved else (2, -1)))
        first, second = pairs.unbind(-1 if self.interleaved else -2)
        both = (first * cos - second * sin, second * cos + first * sin)
        return torch.cat([torch.stack(both, -1 if self.interleaved else -2).flatten(-2), rest], -1)

    def same(self, other: Tables) -> bool:
        """Whether both rotate alike."""
        alike = self.interleaved == other.interleaved and torch.equal(self.cos, other.cos)
        return alike and torch.equal(self.sin, other.sin)


@dataclass(frozen=True, eq=False)
class Rotary:
    """A rotation of pairs of channels by angles that depend on the position alone.

    Attributes:
        x: What is rotated, (batch, heads, length, size).
        tables: By which angles.
    """

    x: fx.Node
    tables: Tables


_Key = tuple[fx.Node, fx.Node, int, fx.Node | None]
_READINGS: WeakKeyDictionary[Graph, dict[_Key, tuple[Tables, ...]]] = WeakKeyDictionary()
"""What was computed already: layers share their cosines and sines, which may be large."""


def trace_rotary(
    operand: fx.Node, graph: Graph, inputs: Inputs, positions: int, *, counted: bool
) -> Rotary | Refusal:
    """Read the rotation that makes ``operand``, for positions 0 to ``positions`` - 1.

    The tables are what the graph computes for a prompt of that length. The proof is numeric: random
    channels, run through the graph, must come out as the rotation has them.

    Args:
        operand: (batch, heads, length, size).
        graph: The program.
        inputs: What it takes.
        positions: How many the tables must cover.
        counted: Whether positions are counted in the padding mask, as a
            :class:`~exporters.causal.DecoderStep` does; they may then follow from a mask of ones.
    """
    found = _parts(operand)
    if found is None:
        return Refusal(f"{op_name(operand)} is no rotary embedding")
    x, cosines, sines = found
    tokens = placeholders(graph.program)[MASK] if counted else None
    try:
        for tables in _readings((cosines, sines, positions, tokens), graph, inputs):
            if _holds(tables, x, operand, graph, tokens):
                return Rotary(x, tables)
    except NotConstantError as error:
        return Refusal(f"the rotation depends on {error}")
    return Refusal("what looks like a rotary embedding does not rotate pairs of channels")


def _parts(operand: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node] | None:
    """``x``, cosines and sines of ``x * cos + turned(x) * sin``, which the rest of x may stand beside."""
    node, partial = _through(operand), False
    if op_name(node) == "cat" and isinstance(node.args[0], list | tuple) and len(node.args[0]) == 2:
        node, partial = _through(node.args[0][0]), True  # type: ignore[arg-type]
    if op_name(node) != "add" or len(node.all_input_nodes) != 2:
        return None
    products = [_through(source) for source in node.all_input_nodes]
    if any(op_name(p) != "mul" or len(p.all_input_nodes) != 2 for p in products):
        return None
    (x, cos), (_, sin) = (p.all_input_nodes for p in products)
    whole = shape_of(x) == shape_of(operand)
    if op_name(x) in {"slice", "alias"} and (partial or whole):  # a slice of all is an alias
        x = x.all_input_nodes[0]
    if shape_of(x) != shape_of(operand):
        return None
    # Each layer lays the tables over its heads anew; behind that they are the same nodes.
    return x, _through(cos, "unsqueeze"), _through(sin, "unsqueeze")


def _through(node: fx.Node, *moves: str) -> fx.Node:
    while op_name(node) in moves or keeps_values(node):
        node = node.all_input_nodes[0]
    return node


def _readings(key: _Key, graph: Graph, inputs: Inputs) -> tuple[Tables, ...]:
    known = _READINGS.setdefault(graph, {})
    if key not in known:
        cosines, sines, positions, tokens = key
        cos, sin = (_table(n, graph, inputs, positions, tokens) for n in (cosines, sines))
        half = cos.shape[-1] // 2
        known[key] = (
            Tables(cos[:, :half].contiguous(), sin[:, :half].contiguous(), interleaved=False),
            Tables(cos[:, ::2].contiguous(), sin[:, ::2].contiguous(), interleaved=True),
        )
    return known[key]


def _table(
    node: fx.Node, graph: Graph, inputs: Inputs, positions: int, tokens: fx.Node | None
) -> Tensor:
    """What the graph computes for each position, if that is the same at every length.

    Raises:
        NotConstantError: If it follows from anything else, such as the length (longrope).
    """
    whole = _rows(node, graph, inputs, positions, tokens)
    captured = inputs.sizes.get(TOTAL_SEQUENCE) or inputs.sizes.get(SEQUENCE, _SHORTEST)
    for length in {_SHORTEST, captured, positions // 2}:
        if not _SHORTEST <= length < positions:
            continue
        rows = _rows(node, graph, inputs, length, tokens)
        if not torch.allclose(rows, whole[:length], rtol=0, atol=_CLOSE):
            raise NotConstantError("the number of positions")
    return whole


def _rows(
    node: fx.Node, graph: Graph, inputs: Inputs, positions: int, tokens: fx.Node | None
) -> Tensor:
    """(positions, channels)."""
    lengths = {BATCH: 1, SEQUENCE: positions, PAST_SEQUENCE: 0, TOTAL_SEQUENCE: positions}
    axes = dict(axes_of(graph, inputs))
    sizes = {symbol: lengths[axis] for symbol, axis in axes.items() if axis in lengths}
    evaluate = Evaluator(graph, sizes=sizes)
    if tokens is not None:
        evaluate.values[tokens] = torch.ones(1, positions, dtype=torch.int64)
    table: Tensor = evaluate(node)
    if table.numel() != positions * table.shape[-1]:
        raise NotConstantError(node.name)
    return table.reshape(positions, -1)


def _holds(
    tables: Tables, source: fx.Node, operand: fx.Node, graph: Graph, tokens: fx.Node | None
) -> bool:
    """Whether the graph does the same at the sizes captured, behind a past without padding."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape_of(source), generator=generator)
    known = {source: x}
    if tokens is not None:
        known[tokens] = torch.ones(shape_of(tokens), dtype=torch.int64)
    length = x.shape[-2]
    total = length if tokens is None else shape_of(tokens)[-1]
    found = Evaluator(graph, known)(operand)
    expected = tables.rotate(x, slice(total - length, total))
    return bool((found - expected).abs().max() <= _CLOSE * expected.abs().max())
