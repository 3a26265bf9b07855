"""What an attention mask really says: nothing, padding, causal, or something to be passed on as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from weakref import WeakKeyDictionary

import sympy
import torch
from torch import Tensor, fx

from exporters.axes import BATCH, SEQUENCE
from exporters.capture import placeholders
from exporters.evaluate import Evaluator, NotConstantError
from exporters.inputs import Inputs, identifier, is_mask
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
_EXTREMES = {torch.finfo(torch.float32).min, torch.finfo(torch.float32).max}
_BEYOND, _LONGEST = 16, 6000

Sizes = dict[sympy.Symbol, int]
Padding = Callable[[list[int]], Tensor]
_KNOWN: WeakKeyDictionary[Graph, dict[tuple[fx.Node | Replay, bool], MaskReading]]
_KNOWN = WeakKeyDictionary()
"""What was read already: layers share masks."""


@dataclass(frozen=True)
class MaskReading:
    """A mask in the words of ONNX Runtime's operators.

    Attributes:
        causal: Later positions are hidden.
        padding: The model's input, (batch, length), that is 1 where there is a token.
        bias: The mask itself, where no simpler word fits: something to add, or a boolean that keeps.
        window: How many positions are seen, its own included; None if all are.
    """

    causal: bool = False
    padding: fx.Node | None = None
    bias: fx.Node | Replay | None = None
    window: int | None = None


@dataclass(frozen=True)
class _Trial:
    """What a mask hides, (batch, heads, queries, keys), and which keys are tokens, (batch, keys)."""

    hides: Tensor
    kept: Tensor | None

    def agrees(self, causal: bool, padded: bool, window: int | None) -> bool:
        rows, columns = self.hides.shape[-2:]
        ones = torch.ones(rows, columns, dtype=torch.bool)
        hidden = ones.triu(1 + columns - rows) if causal else torch.zeros_like(ones)
        if window is not None:
            hidden |= ones.tril(columns - rows - window)
        if padded:
            if self.kept is None or self.kept.shape != self.hides.shape[::3]:
                return False
            hidden = hidden | (self.kept == 0)[:, None, None, :]
        return torch.equal(self.hides, hidden.expand_as(self.hides))


def read_mask(
    mask: fx.Node | Replay | None, graph: Graph, inputs: Inputs, *, decoder: bool = False
) -> MaskReading:
    """Read a mask by running the part of the graph that makes it, on ragged padding.

    A reading must hold at every length. Where the length is dynamic, a mask made from a stored table
    is passed on as it is; one made with numbers (a sliding window looks causal at a short length) is
    run at lengths beyond their sum.

    Args:
        mask: What is added to the scores, or keeps them.
        graph: The program.
        inputs: What it takes.
        decoder: Whether the operator takes sliding windows, and queries that continue a past.
    """
    if mask is None:
        return MaskReading()
    known = _KNOWN.setdefault(graph, {})
    if (mask, decoder) not in known:
        known[mask, decoder] = _read(mask, graph, inputs, decoder)
    return known[mask, decoder]


def _read(mask: fx.Node | Replay, graph: Graph, inputs: Inputs, decoder: bool) -> MaskReading:
    numbers = None if isinstance(mask, Replay) else _numbers(mask, graph)
    if isinstance(mask, Replay) or numbers is None:
        return MaskReading(bias=mask)
    tokens = _padding_input(graph, inputs)
    try:
        sizes = _sizes(mask, graph, inputs, numbers)
        trials = [_run(mask, graph, tokens, *each) for each in product(sizes, (_scattered, _lone))]
    except NotConstantError:
        return MaskReading(bias=mask)
    windows: list[int | None] = [None, *(sorted(numbers) if decoder else ())]
    square = all(trial.hides.shape[-2] == trial.hides.shape[-1] for trial in trials)
    for causal, padded, window in product((False, True), (False, True), windows):
        if (causal and not (square or decoder)) or (window and not causal):
            continue
        if all(trial.agrees(causal, padded, window) for trial in trials):
            return MaskReading(causal, tokens if padded else None, None, window)
    return MaskReading(bias=mask)


def _run(
    mask: fx.Node, graph: Graph, tokens: fx.Node | None, sizes: Sizes, padding: Padding
) -> _Trial:
    """Run a mask at some sizes, on one kind of padding.

    Raises:
        NotConstantError: If it depends on more than padding and lengths, or does more than hide.
    """
    evaluate = Evaluator(graph, sizes=sizes)
    kept = None
    if tokens is not None:
        kept = padding([evaluate.size(n) for n in tokens.meta["val"].shape])
        evaluate.values[tokens] = kept.to(tokens.meta["val"].dtype)
    value: Tensor = evaluate(mask)
    if value.dtype is torch.bool:
        return _Trial(~value, kept)
    hidden = value <= LOWEST
    if not bool((hidden | (value == 0)).all()):
        raise NotConstantError(mask.name)
    return _Trial(hidden, kept)


def _scattered(shape: list[int]) -> Tensor:
    """A padding mask that hides every third token: no two of the possible readings agree on it."""
    return torch.arange(torch.Size(shape).numel()).reshape(shape) % 3 != 1


def _lone(shape: list[int]) -> Tensor:
    """A padding mask that keeps the first token alone: pooled over several tokens, the other one hides none."""
    return (torch.arange(shape[1]) == 0).expand(shape)


def _sizes(mask: fx.Node, graph: Graph, inputs: Inputs, numbers: frozenset[int]) -> Iterator[Sizes]:
    """Those captured; and where numbers play a part, lengths beyond them, of a prompt and of a past.

    Raises:
        NotConstantError: If that would be too long to try.
    """
    yield {}
    if not numbers or isinstance(mask.meta["val"].shape[-1], int):
        return
    long = sum(map(abs, numbers)) + _BEYOND
    if long > _LONGEST:
        raise NotConstantError(mask.name)
    axes = dict(axes_of(graph, inputs))
    for prompt, past in ((long, 0), (3, long)):
        lengths = {BATCH: 2, SEQUENCE: prompt, f"past_{SEQUENCE}": past}
        lengths[f"total_{SEQUENCE}"] = prompt + past
        yield {symbol: lengths[axis] for symbol, axis in axes.items() if axis in lengths}
        if f"past_{SEQUENCE}" not in axes.values():
            return


def axes_of(graph: Graph, inputs: Inputs) -> Iterator[tuple[sympy.Symbol, str]]:
    """The axis behind each symbol of the graph's inputs."""
    nodes = placeholders(graph.program)
    for name, dims in inputs.axes.items():
        for dim, axis in dims.items():
            size = nodes[identifier(name)].meta["val"].shape[dim]
            if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol:
                yield size.node.expr, axis


def _padding_input(graph: Graph, inputs: Inputs) -> fx.Node | None:
    """The model's padding mask, if it has one."""
    nodes = placeholders(graph.program)
    names = [name for name, value in inputs.tensors.items() if is_mask(name, value)]
    return nodes[names[0]] if len(names) == 1 else None


def _numbers(mask: fx.Node, graph: Graph) -> frozenset[int] | None:
    """The whole numbers that the mask is made with; None if a reading would prove nothing."""
    if len(shape_of(mask)) != 4:
        return None
    found: set[int] = set()
    dynamic = isinstance(mask.meta["val"].shape[-1], torch.SymInt)
    for node in backward([mask]):
        if dynamic and graph.tensor_name(node) is not None and len(shape_of(node)) > 1:
            return None
        if op_name(node) not in _ARITHMETIC:
            continue
        numbers = {arg for arg in node.args if isinstance(arg, int | float)}
        numbers -= _HARMLESS | _EXTREMES
        if dynamic and any(isinstance(number, float) for number in numbers):
            return None
        found |= {int(abs(number)) for number in numbers if isinstance(number, int)}
    return frozenset(found)
