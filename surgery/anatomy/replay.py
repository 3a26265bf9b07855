"""Running a model again without what comes before a weight: its modules give back what they gave before.

Verification runs a model once for each projection. Up to the first use of the disturbed weight every such
run is the same as the undisturbed one, so that modules called before need not compute again: n runs of
n layers become n runs of the few layers between a weight and its attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from surgery.anatomy.runtime import AttentionWatch, EnoughSeen, Event, watching

_KEPT_BYTES = 2**30
_PLAIN = (Tensor, bool, int, float, str, bytes, type(None), torch.dtype, torch.device, torch.Size)


@dataclass
class _Call:
    """One call of a module: when it began and ended, in steps and in attention events."""

    module: nn.Module
    began: int
    first_event: int
    ended: int = -1
    last_event: int = -1
    following: int = -1
    output: Any = None
    repeatable: bool = False


class Replay:
    """Records a run of ``call`` and runs it again from a later point.

    Outputs are copied, at most 1 GiB of them; what does not fit is computed again. A module call is left
    out only if it returns fresh tensors, changes none of its arguments and holds no half-done attention;
    and only if a control run that leaves out the same calls, nothing disturbed, shows the same attentions.

    Args:
        model: The model that ``call`` runs.
        call: Runs the model on fixed inputs.
    """

    def __init__(self, model: nn.Module, call: Callable[[], object]) -> None:
        self.model, self.call = model, call
        self._calls: list[_Call] = []
        self._first_use: dict[int, int] = {}
        self._kept = 0
        self.events = self._record()
        self.faithful = True

    def start(self, weights: Iterable[Tensor], stop_after: int) -> int:
        """The step to run again from when ``weights``, now as recorded, will be changed; 0 computes everything.

        Args:
            weights: Parameters that will be changed in place.
            stop_after: Number of events that the control run makes.
        """
        step = min((self._first_use.get(_place(weight), 0) for weight in weights), default=0)
        if step and self.faithful:
            self.faithful = self._same_events(step, stop_after)
        return step if self.faithful else 0

    def run(self, step: int, stop_after: int) -> list[Event]:
        """The events of a run that leaves out what ended before ``step``.

        Args:
            step: What :meth:`start` returned for the weights that have been changed.
            stop_after: Number of events after which the run ends.
        """
        if step and self.faithful:
            try:
                return self._again(step, stop_after)
            except Exception:
                self.faithful = False  # a module keeps state that the control run has used up
        return watching(self.call, AttentionWatch(stop_after))

    def _record(self) -> list[Event]:
        watcher, clock = AttentionWatch(), _Clock(self._first_use)

        def around(module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            call = _Call(module, clock.steps, len(watcher.events))
            self._calls.append(call)
            before = _versions((args, kwargs))
            output = forward(*args, **kwargs)
            call.ended, call.last_event = clock.steps, len(watcher.events)
            call.following = len(self._calls)
            if before == _versions((args, kwargs)) and _fresh(output, args, kwargs):
                self._keep(call, output, watcher)
            return output

        def timed() -> None:
            with clock:
                self.call()

        with _around_every_call(self.model, around):
            return watching(timed, watcher)

    def _keep(self, call: _Call, output: Any, watcher: AttentionWatch) -> None:
        tensors = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
        size = sum(t.numel() * t.element_size() for t in tensors)
        if self._kept + size <= _KEPT_BYTES and not any(map(watcher.follows, tensors)):
            self._kept += size
            call.output, call.repeatable = _copied(output), True

    def _same_events(self, step: int, stop_after: int) -> bool:
        """Whether what is left out changes nothing: the control experiment."""
        try:
            events = self._again(step, stop_after)
        except Exception:
            return False  # a module keeps state that the recorded outputs do not carry
        expected = self.events[:stop_after]
        return len(events) == len(expected) and all(map(Event.equals, events, expected))

    def _again(self, step: int, stop_after: int) -> list[Event]:
        watcher, place = AttentionWatch(stop_after), 0

        def around(module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            nonlocal place
            call = self._calls[place] if place < len(self._calls) else None
            if call is None or call.began >= step:
                return forward(*args, **kwargs)
            if call.module is not module:
                raise RuntimeError("modules are called in another order")
            if not call.repeatable or call.ended >= step:
                place += 1
                return forward(*args, **kwargs)
            place = call.following
            watcher.events.extend(self.events[call.first_event : call.last_event])
            if len(watcher.events) >= stop_after:
                raise EnoughSeen
            return _copied(call.output)

        with _around_every_call(self.model, around):
            return watching(self.call, watcher)


class _Clock(TorchFunctionMode):
    """Counts the functions called, and when each tensor's memory was first an argument of one."""

    def __init__(self, first_use: dict[int, int]) -> None:
        super().__init__()
        self.steps, self.first_use = 0, first_use

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if torch.compiler.is_compiling():
            return func(*args, **(kwargs or {}))
        self.steps += 1
        for leaf in pytree.tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                self.first_use.setdefault(_place(leaf), self.steps)
        return func(*args, **(kwargs or {}))


@contextmanager
def _around_every_call(model: nn.Module, around: Callable[..., Any]) -> Iterator[None]:
    """Inside, every ``forward`` of the model's modules runs through ``around``."""
    kept = [(module, module.__dict__.get("forward")) for module in model.modules()]
    try:
        for module, _ in kept:
            module.__dict__["forward"] = _routed(module, module.forward, around)
        yield
    finally:
        for module, own in kept:
            module.__dict__.pop("forward", None)
            if own is not None:
                module.__dict__["forward"] = own


def _routed(
    module: nn.Module, forward: Callable[..., Any], around: Callable[..., Any]
) -> Callable[..., Any]:
    return lambda *args, **kwargs: around(module, forward, args, kwargs)


def _versions(arguments: Any) -> list[int]:
    return [leaf._version for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, Tensor)]


def _fresh(output: Any, args: Any, kwargs: Any) -> bool:
    """Whether a call returned only new tensors, and could not have changed an argument unseen."""
    given = [*args, *kwargs.values()]
    leaves = [leaf for value in given for leaf in (value if isinstance(value, tuple) else [value])]
    if not all(isinstance(leaf, _PLAIN) for leaf in leaves):
        return False
    made = pytree.tree_leaves(output)
    if not all(isinstance(leaf, _PLAIN) for leaf in made):
        return False
    places = {_place(leaf) for leaf in leaves if isinstance(leaf, Tensor)}
    return places.isdisjoint(_place(leaf) for leaf in made if isinstance(leaf, Tensor))


def _place(tensor: Tensor) -> int:
    """The memory that a tensor, its views and its ties share; a tensor of vmap has none of its own."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        return -id(tensor)


def _copied(output: Any) -> Any:
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), output)
