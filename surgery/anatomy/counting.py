"""Which operand of a product each dimension comes from, followed through a running model.

No rule says what a view or a transpose does to a dimension: beside the scores go two tensors of their
shape that count along what the first operand gave, and along what the second gave. Whatever
rearranges the scores rearranges them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

REORDERS = frozenset({"__get__", "adjoint", "moveaxis", "movedim", "permute", "swapaxes", "swapdims", "t",
                      "transpose"})  # fmt: skip
_REARRANGES = REORDERS | {"__getitem__", "chunk", "expand", "flatten", "narrow", "reshape", "select", "split",
                          "squeeze", "unbind", "unflatten", "unsqueeze", "view"}  # fmt: skip


@dataclass(frozen=True)
class Counts:
    """Two tensors of one shape that count along the dimensions of the first and of the second operand."""

    first: Tensor
    second: Tensor

    @staticmethod
    def of(name: str, args: Any, operands: tuple[Tensor, Tensor], result: Tensor) -> Counts | None:
        """For the result of a product of two operands; None for an einsum of another kind."""
        if name == "einsum":
            letters = _letters(args[0])
            if letters is None:
                return None
            left, right, out = letters
            own = [_dims(out, {*out} & {*a} - {*b}) for a, b in ((left, right), (right, left))]
        else:
            last = [-1] * (operands[1].ndim > 1)
            own = [[-1 - len(last)] * (operands[0].ndim > 1), last]
        return Counts(*(_counting(result, dims) for dims in own))

    def moved(
        self, func: Callable[..., Any], args: Any, kwargs: Any, result: Tensor, part: int | None
    ) -> Counts | None:
        """After a function that gave ``result`` (or this part of several) for them; None where that is not known."""
        name, both = getattr(func, "__name__", ""), (self.first, self.second)
        if name in _REARRANGES:
            # A view depends on strides, what it does to the dimensions does not.
            plain = (count.contiguous() if name == "view" else count for count in both)
            moved = [func(count, *args[1:], **kwargs) for count in plain]
            first, second = moved if part is None else (parts[part] for parts in moved)
            return Counts(first, second) if first.shape == result.shape else None
        if result.shape == self.first.shape:
            return self
        if result.ndim < self.first.ndim:
            return None
        dims = [[d for d in range(-count.ndim, 0) if _varies(count, d)] for count in both]
        return Counts(*(_counting(result, own) for own in dims))

    def turned(self, other: Counts) -> bool:
        """Whether the others are these with their last two dimensions exchanged."""
        return torch.equal(self.first.mT, other.first) and torch.equal(self.second.mT, other.second)

    def operand(self, dims: list[int]) -> int | None:
        """The one operand that these dimensions come from, 0 or 1, or None."""
        found = [any(_varies(count, dim) for dim in dims) for count in (self.first, self.second)]
        return found.index(True) if sum(found) == 1 else None


def summed(name: str, args: Any, position: int, operand: Tensor) -> list[int]:
    """The dimensions of the operand at ``position`` that a product sums over."""
    if name == "einsum":
        letters = _letters(args[0])
        return _dims(letters[position], {*letters[position]} - {*letters[2]}) if letters else []
    return [-1] if position == 0 or operand.ndim == 1 else [-2]


def _letters(equation: object) -> tuple[str, str, str] | None:
    """The two terms and the result of an einsum, with one dot for three; None for one of other than two."""
    inputs, arrow, out = str(equation).replace(" ", "").replace("...", ".").partition("->")
    if not isinstance(equation, str) or inputs.count(",") != 1:
        return None
    left, right = inputs.split(",")
    if not arrow:
        once = sorted(c for c in {*left, *right} - {"."} if (left + right).count(c) == 1)
        out = "." * ("." in inputs) + "".join(once)
    return left, right, out


def _dims(term: str, letters: set[str]) -> list[int]:
    """Where a term has the letters; from the end for those after the dots."""
    dots = term.find(".")
    return [
        place - len(term) * (0 <= dots < place)
        for place, letter in enumerate(term)
        if letter in letters - {"."}
    ]


def _counting(like: Tensor, dims: list[int]) -> Tensor:
    """Numbers of the shape of a tensor that differ along these dimensions and no others."""
    total = torch.zeros([1] * like.ndim, dtype=torch.int32, device=like.device)
    for dim in dims:
        along = [1] * like.ndim
        along[dim] = size = like.shape[dim]
        steps = torch.arange(size, dtype=total.dtype, device=like.device)
        total = total * size + steps.view(along)
    return total.expand(like.shape)


def _varies(count: Tensor, dim: int) -> bool:
    if count.stride(dim) == 0 or count.shape[dim] == 0:
        return False
    return bool((count != count.narrow(dim, 0, 1)).any())
