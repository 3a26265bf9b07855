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
