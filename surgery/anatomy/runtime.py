"""Watching a model compute attention: an independent witness that never looks at the captured graph.

Every matrix product, softmax and attention call passes through a ``TorchFunctionMode``. Scores are
followed from the product that makes them, through masks and scalings, into a softmax, and on to the
product with the values: what happens between is one attention event, with its three operands.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._higher_order_ops.flex_attention import flex_attention as flex_attention_hop
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from surgery.anatomy.capture import without_fast_path
from surgery.anatomy.counting import Counts, summed
from surgery.anatomy.traces import Trace, after, next_step, softmax_over

_PRODUCTS = frozenset({"matmul", "__matmul__", "__rmatmul__", "bmm", "baddbmm", "einsum", "mm"})
_SOFTMAXES = frozenset({"softmax", "_softmax"})
_OPAQUE = frozenset({"linear", "conv1d", "conv2d", "layer_norm", "group_norm", "embedding"})


@dataclass
class Event:
    """One attention computed at run time: its operands, copied as they were."""

    kind: str
    query: Tensor
    key: Tensor
    value: Tensor

    def moved(self, other: Event) -> tuple[str, ...]:
        """The operands that differ from those of another run of the same attention."""
        names = ("query", "key", "value")
        return tuple(n for n in names if not _same(getattr(self, n), getattr(other, n)))

    def equals(self, other: Event) -> bool:
        """Whether no operand differs."""
        return not self.moved(other)


@dataclass
class AttentionWatch(TorchFunctionMode):
    """Records every attention that runs inside the context.

    Args:
        stop_after: Raise :class:`EnoughSeen` once this many events were seen; None sees them all.
    """

    stop_after: int | None = None
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._traces: dict[int, tuple[weakref.ref[Tensor], Trace]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self.record("sdpa", *_operands(("query", "key", "value"), args, kwargs))
            with torch._C.DisableTorchFunction():
                return self.attended(func(*args, **kwargs), len(self.events) - 1)
        if func is F.multi_head_attention_forward:
            return self._look_inside(func, args, kwargs)
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            self._follow(func, args, kwargs, result)
        elif isinstance(result, tuple | list):
            for number, part in enumerate(result):
                if isinstance(part, Tensor):
                    self._follow(func, args, kwargs, part, number)
        return result

    def _look_inside(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a composite function under this mode; it would hand itself to the mode once more."""
        with mock.patch.object(F, "has_torch_function", return_value=False), self:
            return func(*args, **kwargs)

    def _follow(
        self,
        func: Callable[..., Any],
        args: Any,
        kwargs: Any,
        result: Tensor,
        part: int | None = None,
    ) -> None:
        name, tensors = getattr(func, "__name__", ""), _tensors((args, kwargs))
        if name in _PRODUCTS:
            self._product(name, args, tensors, result)
            return
        found = [trace for trace in map(self._trace, tensors) if trace is not None]
        if not found and name in _SOFTMAXES:
            found = [Trace(softened=tensors[0])]
        if not found or (name in _OPAQUE and not _mixes_heads(tensors, result)):
            return
        # A hard assignment is made of scores and probabilities: what counts is that it was normalised.
        trace = min(found, key=lambda t: (t.probabilities is None, t.learned))
        step = "softmax" if name in _SOFTMAXES else next_step(name, found)
        if step == "softmax" and trace.scores is not None:
            key = softmax_over(args, kwargs, result, trace.counts)
            trace = Trace(probabilities=trace.scores, counts=trace.counts, key=key)
        else:
            trace = replace(after(trace, func, args, kwargs, result, part), step=step)
        self._set(result, trace)

    def _product(self, name: str, args: Any, tensors: list[Tensor], result: Tensor) -> None:
        operands = tensors[-2:]
        weights = [isinstance(t, nn.Parameter) for t in operands]
        if len(operands) < 2 or all(weights) or _projects(name, operands):
            return
        for index, operand in enumerate(operands):
            trace = self._trace(operand)
            if trace is not None and trace.probabilities is not None:
                key = trace.summed(summed(name, args, index, operand), otherwise=trace.key)
                self._weighs(trace, key, operands[1 - index])
                self.attended(result, trace.event[0])
                return
        if self._linear(operands):
            self.attended(result, len(self.events) - 1)
        else:
            first, second = operands
            counts = Counts.of(name, args, (first, second), result)
            self._set(result, Trace(scores=(first, second), counts=counts, learned=any(weights)))

    def _weighs(self, trace: Trace, key: int, value: Tensor) -> None:
        """One softmax is one attention, also where its parts weigh several values (Pegasus-X)."""
        if not trace.event:
            assert trace.probabilities is not None
            trace.event.append(len(self.events))
            self.record("softmax", trace.probabilities[1 - key], trace.probabilities[key], value)

    def _linear(self, operands: list[Tensor]) -> bool:
        """``query (key^T value)``: a product over tokens, then one over the channels of the key."""
        traces = [self._trace(operand) or Trace() for operand in operands]
        contexts = [i for i, t in enumerate(traces) if t.scores is not None and not t.learned]
        if len(contexts) != 1:
            return False
        (index,) = contexts
        scores = traces[index].scores
        assert scores is not None
        if not traces[index].direct:
            return False
        made_of_products = any((self._trace(s) or Trace()).scores is not None for s in scores)
        if made_of_products or scores[0].shape[-1] <= operands[0].shape[-1]:
            return False
        key = traces[index].summed([-1 if index == 0 else -2], otherwise=1 - index)
        record = (operands[1 - index], scores[key], scores[1 - key])
        self.record("linear", *map(self._unsoftened, record))
        return True

    def _unsoftened(self, tensor: Tensor) -> Tensor:
        trace = self._trace(tensor)
        return tensor if trace is None or trace.softened is None else trace.softened

    def record(self, kind: str, query: Tensor, key: Tensor, value: Tensor) -> None:
        """Keep one attention; raises :class:`EnoughSeen` where it is the last one asked for."""
        copies = (t.detach().clone() for t in (query, key, value))
        self.events.append(Event(kind, *copies))
        if self.stop_after is not None and len(self.events) >= self.stop_after:
            raise EnoughSeen

    def attended(self, result: Tensor, event: int) -> Tensor:
        """Called with what an attention gives, or a part of it; whoever watches may change it in place."""
        return result

    def follows(self, tensor: Tensor) -> bool:
        """Whether a tensor is on its way through an attention: scores, probabilities, a context."""
        return self._trace(tensor) is not None

    def _trace(self, tensor: Tensor) -> Trace | None:
        reference, trace = self._traces.get(id(tensor), (None, None))
        return trace if reference is not None and reference() is tensor else None

    def _set(self, tensor: Tensor, trace: Trace) -> None:
        self._traces[id(tensor)] = (weakref.ref(tensor), trace)


class EnoughSeen(Exception):  # noqa: N818 - it is a signal, not an error
    """Raised inside a forward to end it early."""


def watch(call: Callable[[], object], stop_after: int | None = None) -> list[Event]:
    """Run ``call`` and return the attention events it made."""
    return watching(call, AttentionWatch(stop_after))


def watching(call: Callable[[], object], watcher: AttentionWatch) -> list[Event]:
    """Run ``call`` under a watcher of your own and return the attention events it saw."""
    with (
        suppress(EnoughSeen),
        without_fast_path(),
        torch.no_grad(),
        watcher,
        _flex_attention_seen_by(watcher),
    ):
        call()
    return watcher.events


@contextmanager
def _flex_attention_seen_by(watcher: AttentionWatch) -> Iterator[None]:
    """Inside, calls of ``flex_attention`` are recorded: no function mode is asked about that operator."""
    kind = type(flex_attention_hop)
    plain, within = kind.__call__, False

    def recorded(
        self: Any, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **named: Any
    ) -> Any:
        nonlocal within
        if (
            within or type(query) is not Tensor
        ):  # one level of dispatch further, or a compiler's stand-in
            return plain(self, query, key, value, *rest, **named)
        watcher.record("flex", query, key, value)
        within = True
        try:
            return plain(self, query, key, value, *rest, **named)
        finally:
            within = False

    with mock.patch.object(kind, "__call__", recorded):
        yield


def _same(old: Tensor, new: Tensor) -> bool:
    return old.shape == new.shape and bool(torch.equal(old.nan_to_num(), new.nan_to_num()))


def _operands(names: tuple[str, ...], args: Any, kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
    found = [args[i] if i < len(args) else kwargs[name] for i, name in enumerate(names)]
    return found[0], found[1], found[2]


def _projects(name: str, operands: list[Tensor]) -> bool:
    """Whether a product is a projection by a weight; one that a learned query makes with keys is none."""
    either = operands if name == "einsum" else operands[1:]
    return any(isinstance(t, nn.Parameter) and t.ndim < 3 for t in either)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return [tensor for item in value for tensor in _tensors(item)]
    return []


def _mixes_heads(tensors: list[Tensor], result: Tensor) -> bool:
    """A linear over four-dimensional scores that keeps their shape: talking heads."""
    return bool(tensors) and tensors[0].ndim == 4 and tensors[0].shape == result.shape
