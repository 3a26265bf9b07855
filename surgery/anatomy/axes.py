"""Where the dimensions of a value go on its way through the graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from surgery.anatomy.graph import op_name, shape_of

REORDERS = frozenset({"adjoint", "mH", "mT", "matrix_H", "moveaxis", "movedim", "numpy_T", "permute",
                      "swapaxes", "swapdims", "t", "transpose"})  # fmt: skip


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
