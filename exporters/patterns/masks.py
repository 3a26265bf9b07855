"""What an attention mask really says: nothing, padding, causal, or something to be passed on as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from weakref import WeakKeyDictionary

import sympy
import torch
from torch import Tensor, fx

from exporters.axes import BATCH
from exporters.causal import PAST_SEQUENCE, TOTAL_SEQUENCE
from exporters.edits import placeholders
from exporters.evaluate import Evaluator, NotConstantError
from exporters.inputs import Inputs, identifier
from exporters.padding import is_mask
from exporters.patterns.base import LOWEST
from exporters.patterns.numbers import numbers_behind, reach
from exporters.patterns.scores import Replay
from surgery.anatomy.graph import Graph, shape_of

_MOST = 2 * 6000**2
_WIDEST = 2**31

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
        finite: It hides by a finite number: a query that sees nothing attends to all keys alike.
    """

    causal: bool = False
    padding: fx.Node | None = None
    bias: fx.Node | Replay | None = None
    window: int | None = None
    finite: bool = False


@dataclass(frozen=True)
class _Trial:
    """What a mask hides, (batch, heads, queries, keys), if by a finite number; which keys are tokens, (batch, keys)."""

    hides: Tensor
    kept: Tensor | None
    finite: bool = False

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

    A reading must hold at every length. Where the length is dynamic, a mask is run at a length beyond the
    product of all numbers in it (a sliding window looks causal at a short length); one that is made in other
    ways than from places, comparisons and padding is passed on as it is.

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
    if isinstance(mask, Replay) or len(shape_of(mask)) != 4:
        return MaskReading(bias=mask)
    tokens, numbers = _padding_input(graph, inputs), numbers_behind(mask, graph)
    try:
        sizes = _sizes(mask, graph, inputs, numbers)
        trials = [_run(mask, graph, tokens, *each) for each in product(sizes, (_scattered, _lone))]
    except NotConstantError:
        return MaskReading(bias=mask)
    windows: list[int | None] = [None, *(_windows(numbers) if decoder else ())]
    square = all(trial.hides.shape[-2] == trial.hides.shape[-1] for trial in trials)
    for causal, padded, window in product((False, True), (False, True), windows):
        if (causal and not (square or decoder)) or (window and not causal):
            continue
        if all(trial.agrees(causal, padded, window) for trial in trials):
            finite = any(trial.finite for trial in trials)
            return MaskReading(causal, tokens if padded else None, None, window, finite)
    return MaskReading(bias=mask)


def _windows(numbers: Iterable[int | float]) -> list[int]:
    """What a window may be: ``i - j < n`` and ``i - j <= n`` are both written."""
    found = {abs(int(n)) for n in numbers if float(n).is_integer() and abs(n) < _WIDEST}
    return sorted(found | {number + 1 for number in found})


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
    try:
        value: Tensor = evaluate(mask)
    except (RuntimeError, IndexError) as error:  # these sizes do not go together
        raise NotConstantError(mask.name) from error
    if value.dtype is torch.bool:
        return _Trial(~value, kept)
    hidden = value <= LOWEST
    # Where all keys are hidden, some lower than others, a query attends to these others.
    if not bool((hidden | (value == 0)).all()) or bool((value[hidden] != value.min()).any()):
        raise NotConstantError(mask.name)
    return _Trial(hidden, kept, bool(hidden.any() and value.min().isfinite()))


def _scattered(shape: list[int]) -> Tensor:
    """A padding mask that hides every third token: no two of the possible readings agree on it."""
    return torch.arange(torch.Size(shape).numel()).reshape(shape) % 3 != 1


def _lone(shape: list[int]) -> Tensor:
    """A padding mask that keeps the first token alone: pooled over several tokens, the other one hides none."""
    return (torch.arange(shape[1]) == 0).expand(shape)


def _sizes(
    mask: fx.Node, graph: Graph, inputs: Inputs, numbers: list[int | float]
) -> Iterator[Sizes]:
    """Those captured; and where they are dynamic, lengths beyond the numbers, of a prompt and of a past.

    Raises:
        NotConstantError: If that proves nothing, or would be too long to try.
    """
    yield {}
    if all(isinstance(size, int) for size in mask.meta["val"].shape[-2:]):
        return
    long = reach(mask, graph, numbers)
    axes = dict(axes_of(graph, inputs))
    for prompt, past in ((long, 0), (3, long)):
        sizes = {symbol: _length(axis, prompt, past) for symbol, axis in axes.items()}
        _check(mask, Evaluator(graph, sizes=sizes), long)
        yield sizes
        if PAST_SEQUENCE not in axes.values():
            return


def _length(axis: str, prompt: int, past: int) -> int:
    known = {PAST_SEQUENCE: past, TOTAL_SEQUENCE: prompt + past}
    return 2 if axis.endswith(BATCH) else known.get(axis, prompt)


def _check(mask: fx.Node, evaluate: Evaluator, long: int) -> None:
    """Whether a trial is long enough, and not too long."""
    shape = [evaluate.size(size) for size in mask.meta["val"].shape]
    dynamic = [
        size
        for size, was in zip(shape, mask.meta["val"].shape, strict=True)
        if not isinstance(was, int)
    ]
    if max(dynamic) < long or prod(shape) > _MOST:
        raise NotConstantError(mask.name)


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
