"""Every way a graph multiplies an activation with a weight, one pattern a class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from torch import fx

from surgery.anatomy.axes import einsum_terms
from surgery.anatomy.types import Layout

if TYPE_CHECKING:
    from surgery.anatomy.linears import LinearRead, LinearReader


class LinearPattern(Protocol):
    """Recognises one way of writing a linear projection."""

    @property
    def ops(self) -> frozenset[str]:
        """Names of the operators that may match."""

    def match(self, node: fx.Node, reader: LinearReader) -> LinearRead | None:
        """Return the read, or None when the node is something else."""


class LinearCall:
    """``aten.linear(x, W, b)``, with W a parameter or rows of one."""

    ops = frozenset({"linear"})

    def match(self, node: fx.Node, reader: LinearReader) -> LinearRead | None:
        """See :class:`LinearPattern`."""
        x, weight, *bias = node.args
        view = reader.weight(weight)
        if view is None or len(view.shape) != 2:
            return None
        return reader.build(node, x, view, flip=False, bias=bias[0] if bias else None)


class AddmmCall:
    """``addmm(b, x, W)``: transformers' Conv1D keeps W as (in, out)."""

    ops = frozenset({"addmm"})

    def match(self, node: fx.Node, reader: LinearReader) -> LinearRead | None:
        """See :class:`LinearPattern`."""
        bias, x, weight = node.args[:3]
        view = reader.weight(weight)
        if view is None:
            return None
        return reader.build(node, x, view, flip=True, bias=bias)


class MatmulCall:
    """``x @ W``, ``x @ W.T``, ``mm``: a product of an activation with a two-dimensional parameter."""

    ops = frozenset({"matmul", "mm"})

    def match(self, node: fx.Node, reader: LinearReader) -> LinearRead | None:
        """See :class:`LinearPattern`."""
        x, weight = node.args[:2]
        view = reader.weight(weight)
        if view is None or len(view.shape) != 2:
            return None
        return reader.build(node, x, view, flip=True, bias=None)


class PointwiseConv:
    """A convolution that only mixes channels: kernel 1, one group, no padding, no dilation."""

    ops = frozenset({"conv1d", "conv2d"})

    def match(self, node: fx.Node, reader: LinearReader) -> LinearRead | None:
        """See :class:`LinearPattern`."""
        x, weight = node.args[:2]
        view = reader.weight(weight)
        if view is None or view.transposed:
            return None
        groups = node.args[6] if len(node.args) > 6 else node.kwargs.get("groups", 1)
        padding = node.args[4] if len(node.args) > 4 else node.kwargs.get("padding", 0)
        # Words pad a kernel of 1 by nothing.
        padded = isinstance(padding, list | tuple) and any(padding)
        if any(size != 1 for size in view.shape[2:]) or groups != 1 or padded:
            return None
        return reader.build_conv(node, x, view)


class EinsumCall:
    """``einsum("bsh,hnd->bsnd", x, W)``: the letters that W shares with x, and only those, are summed over.

    One side of W is its first dimension, the other all the rest, however many (heads and their channels).
    """

    ops = frozenset({"einsum"})

    def match(self, node: fx.Node, reader: LinearReader) -> LinearRead | None:
        """See :class:`LinearPattern`."""
        terms, result = einsum_terms(node)
        repeated = any(len(set(term)) < len(term) for term in (*terms, result))
        if len(terms) != 2 or repeated:
            return None
        operands: Any = node.args[1]
        (left, right), (first, second) = terms, operands
        for x, weight, seen, own in ((first, second, left, right), (second, first, right, left)):
            view = reader.weight(weight)
            layout = _side(seen, own, result)
            if view is not None and not view.transposed and layout is not None:
                outer = own[1:] if layout is Layout.IN_OUT else own[:1]
                dims = tuple(result.index(letter) for letter in outer)
                return reader.build_einsum(node, x, view, layout, dims)
        return None


def _side(seen: str, own: str, result: str) -> Layout | None:
    """Where a weight with letters ``own`` keeps its output channels; None if it is no projection of ``seen``."""
    summed = [letter for letter in own if letter in seen and letter not in result]
    kept = [letter for letter in own if letter not in seen and letter in result]
    others = [letter for letter in seen if letter not in own]
    each = len(summed) + len(kept) == len(own) and set(others) <= set(result)
    if not summed or not kept or not each:
        return None
    if list(own) == summed + kept and len(summed) == 1:
        return Layout.IN_OUT
    return Layout.OUT_IN if list(own) == kept + summed and len(kept) == 1 else None


PATTERNS: tuple[LinearPattern, ...] = (
    LinearCall(),
    AddmmCall(),
    MatmulCall(),
    EinsumCall(),
    PointwiseConv(),
)
