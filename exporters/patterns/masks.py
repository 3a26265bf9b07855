"""What an attention mask really says: nothing, padding, causal, or something to be passed on as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from exporters.evaluate import Evaluator, NotConstantError
from exporters.inputs import Inputs, is_mask
from exporters.patterns.base import LOWEST
from exporters.patterns.scores import Replay
from surgery.anatomy.graph import Graph, backward, op_name, shape_of

_ARITHMETIC = frozenset(
    [
        "add",
        "sub",
        "rsub",
        "mul",
        "div",
        "floor_divide",
        "remainder",
        "lt",
        "le",
        "gt",
        "ge",
        "eq",
        "ne",
        "clamp",
        "pow",
        "where",
        "masked_fill",
    ]
)
_HARMLESS = {0, 1, -1, float("inf"), float("-inf")}


@dataclass(frozen=True)
class MaskReading:
    """A mask in the words of ONNX Runtime's operators.

    Attributes:
        causal: Later positions are hidden.
        padding: The model's input, (batch, length), that is 1 where there is a token.
        bias: The mask itself, where no simpler word fits: something to add, or a boolean that keeps.
    """

    causal: bool = False
    padding: fx.Node | None = None
    bias: fx.Node | Replay | None = None


def read_mask(mask: fx.Node | Replay | None, graph: Graph, inputs: Inputs) -> MaskReading:
    """Read a mask by running the part of the graph that makes it, on ragged padding.

    A reading must hold at every length, and a sliding window looks causal at the short length
    probed here. So where the length is dynamic, a mask made with any number other than 0 and 1, or
    from a stored table, is passed on as it is.
    """
    if mask is None:
        return MaskReading()
    if isinstance(mask, Replay):
        return MaskReading(bias=mask)
    tokens = _padding_input(graph, inputs)
    kept = None if tokens is None else _scattered(inputs.tensors[tokens.name])
    hides = _hidden(mask, graph, {} if tokens is None else {tokens: kept})
    if hides is None:
        return MaskReading(bias=mask)
    batch, _, rows, columns = hides.shape
    later = torch.ones(rows, columns, dtype=torch.bool).triu(1).expand_as(hides)
    padding = torch.zeros_like(later)
    if kept is not None and kept.shape == (batch, columns):
        padding = (kept == 0)[:, None, None, :].expand_as(hides)
    for causal in (False, True):
        for padded in (False, True):
            if torch.equal(hides, (later & causal) | (padding & padded)):
                return MaskReading(causal, tokens if padded else None)
    return MaskReading(bias=mask)


def _scattered(tokens: Tensor) -> Tensor:
    """A padding mask that hides every third token: no two of the possible readings agree on it."""
    return (torch.arange(tokens.numel()).reshape(tokens.shape) % 3 != 1).to(tokens.dtype)


def _hidden(mask: fx.Node, graph: Graph, known: Mapping[fx.Node, Any]) -> Tensor | None:
    """True where a position is hidden, (batch, heads, length, length); None if it is no such mask."""
    if len(shape_of(mask)) != 4:
        return None
    if isinstance(mask.meta["val"].shape[-1], torch.SymInt) and not _holds_at_every_length(
        mask, graph
    ):
        return None
    try:
        value: Tensor = Evaluator(graph, known)(mask)
    except NotConstantError:
        return None
    if value.dtype is torch.bool:
        return ~value
    hidden = value <= LOWEST
    return hidden if bool((hidden | (value == 0)).all()) else None


def _padding_input(graph: Graph, inputs: Inputs) -> fx.Node | None:
    """The model's padding mask, if it has one."""
    nodes = {n.name: n for n in graph.program.graph.nodes if n.op == "placeholder"}
    names = [name for name, value in inputs.tensors.items() if is_mask(name, value)]
    return nodes[names[0]] if len(names) == 1 else None


def _holds_at_every_length(mask: fx.Node, graph: Graph) -> bool:
    for node in backward([mask]):
        stored = graph.tensor_name(node) is not None and len(shape_of(node)) > 1
        if stored or (op_name(node) in _ARITHMETIC and not _harmless_numbers(node)):
            return False
    return True


def _harmless_numbers(node: fx.Node) -> bool:
    numbers = [arg for arg in node.args if isinstance(arg, int | float)]
    extremes = {torch.finfo(torch.float32).min, torch.finfo(torch.float32).max}
    return all(number in _HARMLESS | extremes for number in numbers)
