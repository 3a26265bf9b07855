"""Where the dimensions of a value go on its way through the graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from surgery.anatomy.graph import op_name, shape_of

Labels = tuple[frozenset[int], ...]
"""What each dimension of a value is made of, in numbers that the asker chooses."""

REORDERS = frozenset({"adjoint", "mH", "mT", "matrix_H", "moveaxis", "movedim", "numpy_T", "permute",
                      "swapaxes", "swapdims", "t", "transpose"})  # fmt: skip

_RESHAPES = frozenset({"_unsafe_view", "flatten", "reshape", "reshape_as", "squeeze", "unflatten",
                       "unsqueeze", "view", "view_as"})  # fmt: skip
_LISTS = frozenset({"chunk", "split", "split_with_sizes", "tensor_split"})
_OPAQUE = frozenset({"as_strided", "col2im", "einsum", "gather", "im2col", "index", "pixel_shuffle",
                     "pixel_unshuffle", "rot90", "tile", "unfold", "view_as_complex", "view_as_real"})  # fmt: skip
_NONE: frozenset[int] = frozenset()


def reordered(node: fx.Node) -> tuple[int, ...] | None:
    """For each dimension of a value, the dimension of the first argument that it was.

    None for a node that does more than give the dimensions another order.
    """
    if op_name(node) not in REORDERS:
        return None
    source, *rest = node.args
    assert isinstance(source, fx.Node)
    # A shape that names each dimension, so that the operator itself says where it goes.
    names = torch.empty([*range(1, len(shape_of(source)) + 1)], device="meta")
    moved: Any = node.target(names, *rest, **node.kwargs)  # type: ignore[operator]
    return tuple(size - 1 for size in moved.shape)


def einsum_terms(node: fx.Node) -> tuple[list[str], str]:
    """The letters of each operand's dimensions, and of those of the result.

    What ``...`` stands for gets Greek letters, and a result that is not written out is made explicit.
    """
    equation, operands = node.args[:2]
    assert isinstance(equation, str) and isinstance(operands, list | tuple)
    inputs, arrow, result = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    hidden = [
        len(shape_of(operand)) - len(term.replace("...", ""))
        for term, operand in zip(terms, operands, strict=True)
        if isinstance(operand, fx.Node)
    ]
    dots = "αβγδεζηθ"[: max(hidden)]
    terms = [
        term.replace("...", dots[len(dots) - count :])
        for term, count in zip(terms, hidden, strict=True)
    ]
    if not arrow:
        written = sorted(set(inputs) - set(".,"))
        result = "..." + "".join(letter for letter in written if inputs.count(letter) == 1)
    return terms, result.replace("...", dots)


def factors_of(product: fx.Node) -> Labels:
    """For each dimension of a product, the factor that it comes from, 0 or 1; none for what both have."""
    if op_name(product) == "einsum":
        (left, right), result = einsum_terms(product)
        return tuple(
            frozenset({int(letter in right)}) if (letter in left) != (letter in right) else _NONE
            for letter in result
        )
    dims = [len(shape_of(factor)) for factor in product_operands(product)]
    own = [frozenset({factor}) for factor in (0, 1) if dims[factor] > 1]
    return (*[_NONE] * (len(shape_of(product)) - len(own)), *own)


def summed(product: fx.Node, position: int) -> tuple[int, ...]:
    """The dimensions of one factor that a product sums over."""
    if op_name(product) == "einsum":
        terms, result = einsum_terms(product)
        return tuple(d for d, letter in enumerate(terms[position]) if letter not in result)
    dims = len(shape_of(product_operands(product)[position]))
    return (max(dims - 2, 0) if position else dims - 1,)


def kept(product: fx.Node, position: int) -> tuple[int, ...]:
    """The dimensions of one factor that a product keeps, and that the other factor does not have."""
    if op_name(product) == "einsum":
        terms, result = einsum_terms(product)
        own = set(result) - set(terms[1 - position])
        return tuple(d for d, letter in enumerate(terms[position]) if letter in own)
    dims = len(shape_of(product_operands(product)[position]))
    return () if dims < 2 else (dims - 1 if position else dims - 2,)


def product_operands(node: fx.Node) -> list[fx.Node]:
    """The factors of a product."""
    name = op_name(node)
    args = (
        node.args[1] if name == "einsum" else node.args[1:3] if name == "baddbmm" else node.args[:2]
    )
    return (
        [arg for arg in args if isinstance(arg, fx.Node)] if isinstance(args, list | tuple) else []
    )


def carried(node: fx.Node, source: fx.Node, labels: Labels | None) -> Labels | None:
    """The labels of a value, given those of one of its inputs; None where they are lost."""
    name, before, after = op_name(node), shape_of(source), shape_of(node)
    if labels is None or name in _OPAQUE:
        return None
    order = reordered(node)
    if order is not None:
        return tuple(labels[dim] for dim in order)
    if name in _LISTS or (name == "getitem" and not before):
        return labels
    if name in _RESHAPES:
        return _regrouped(labels, before, after)
    if name in {"select", "unbind"}:
        dim = node.args[1] if len(node.args) > 1 else 0
        assert isinstance(dim, int)
        dim %= len(labels)
        return (*labels[:dim], *labels[dim + 1 :])
    added = len(after) - len(labels)
    return None if added < 0 or name == "stack" else (*[_NONE] * added, *labels)


def carried_along(
    after: Mapping[fx.Node, fx.Node], start: fx.Node, labels: Labels
) -> Labels | None:
    """The labels at the end of the way from ``start``; ``after`` names the next node of each."""
    node, found = start, labels or None
    while node in after:
        node, found = after[node], carried(after[node], node, found)
    return found


def _regrouped(labels: Labels, before: tuple[int, ...], after: tuple[int, ...]) -> Labels | None:
    """Dimensions are merged and split in runs of one size; all of a run get the labels of all of it.

    Those of size 1 come and go and have none.
    """
    sizes = [(size, own) for size, own in zip(before, labels, strict=True) if size != 1]
    found = [_NONE] * len(after)
    into = [dim for dim, size in enumerate(after) if size != 1]
    while sizes and into:
        (old, own), run = sizes.pop(0), [into.pop(0)]
        new = after[run[0]]
        while old != new and (sizes if old < new else into):
            if old < new:
                size, more = sizes.pop(0)
                old, own = old * size, own | more
            else:
                run.append(into.pop(0))
                new *= after[run[-1]]
        if old != new:
            return None
        for dim in run:
            found[dim] = own
    return tuple(found)
