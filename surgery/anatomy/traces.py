"""What is known of a tensor between the products of a running attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from surgery.anatomy.counting import REORDERS, Counts

# A state that a recurrence decays, adds to or gathers (Mamba, delta rules) is no context of linear attention.
_CASTS = frozenset({"to", "float", "half", "bfloat16", "type", "type_as", "contiguous", "clone"})


@dataclass
class Trace:
    """What a tensor is on its way through an attention.

    Attributes:
        scores: The operands of the product that it is made from, up to the softmax.
        probabilities: The same from the softmax on.
        softened: What a softmax was taken of that is not of scores.
        step: How far it is in a softmax that is spelled out.
        learned: Whether one of the operands is a parameter.
        counts: Which operand each of its dimensions comes from, if known.
        key: The operand that the softmax runs over.
        direct: Whether the product was but cast and turned since.
        event: Number of the attention, once there is one; one list for all that comes of one softmax.
    """

    scores: tuple[Tensor, Tensor] | None = None
    probabilities: tuple[Tensor, Tensor] | None = None
    softened: Tensor | None = None
    step: str = ""
    learned: bool = False
    counts: Counts | None = None
    key: int = 1
    direct: bool = True
    event: list[int] = field(default_factory=list)

    def summed(self, dims: list[int], otherwise: int) -> int:
        """The operand of the scores that these dimensions come from."""
        found = self.counts.operand(dims) if self.counts is not None else None
        return otherwise if found is None else found


def after(
    trace: Trace,
    func: Callable[..., Any],
    args: Any,
    kwargs: Any,
    result: Tensor,
    part: int | None,
) -> Trace:
    """The trace of what a function made of a traced tensor."""
    name, before = getattr(func, "__name__", ""), trace.counts
    if before is None:
        return replace(trace, direct=trace.direct and name in _CASTS)
    counts = before.moved(func, args, kwargs, result, part)
    turned = name in REORDERS and trace.direct and counts is not None and before.turned(counts)
    direct = trace.direct and (name in _CASTS or turned)
    return replace(trace, counts=counts, direct=direct)


_STEPS = {
    ("exp", ""): "exponential",
    ("sum", "exponential"): "total",
    ("div", "exponential", "total"): "softmax",
    ("logsumexp", ""): "logarithm of the total",
    ("sub", "", "logarithm of the total"): "logarithm",
    ("log_softmax", ""): "logarithm",
    ("exp", "logarithm"): "softmax",
}
"""A softmax spelled out: what a function makes of what came before."""
_OPERATORS = {
    "truediv": "div",
    "true_divide": "div",
    "itruediv": "div",
    "isub": "sub",
    "subtract": "sub",
}


def next_step(name: str, found: list[Trace]) -> str:
    """How far the result of a function of traced tensors is in a softmax; ``softmax`` is the end."""
    plain = name.strip("_")
    steps = (trace.step for trace in found)
    return _STEPS.get((_OPERATORS.get(plain, plain), *steps), found[0].step)


def softmax_over(args: Any, kwargs: Any, result: Tensor, counts: Counts | None) -> int:
    """The operand of the scores that a softmax runs over: the key, but for slot attention.

    There slots compete for each token; the product with the values has the last word.
    """
    dim = kwargs.get("dim", args[1] if len(args) > 1 and isinstance(args[1], int) else -1)
    found = counts.operand([dim]) if counts is not None else None
    return int(dim not in (-2, result.ndim - 2)) if found is None else found
