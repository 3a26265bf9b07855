"""Spelling out what torch's exporter or onnxscript would get wrong, before anything else reads a graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from exporters.edits import insert_before
from surgery.anatomy.graph import op_name, shape_of

aten = torch.ops.aten

_HISTC = {"bins": 100, "min": 0, "max": 0}
"""The further arguments of ``histc`` and their defaults."""


def respell(graph: fx.Graph) -> None:
    """Rewrite a captured graph in place; it computes the same.

    * ``1.0 - n`` of whole numbers casts them first: torch's exporter promotes no second operand.
    * Equal parts of a dynamic size are selected, not split off: onnxscript wants to know the size.
    * A histogram of one bin over all there is (a mixture of one expert makes it) counts; torch's exporter refuses.
    * A ``view`` becomes a ``reshape``: what torch's exporter makes of an attention may lie otherwise in memory.
    * A ``squeeze`` of sizes that are not 1 is left out: torch leaves them as they are, ONNX refuses.
    """
    for node in list(graph.nodes):
        if _subtracts_whole(node):
            _cast_operand(node)
        elif node.target is aten.view.default:
            node.target = aten.reshape.default
        elif _squeezes_nothing(node):
            node.replace_all_uses_with(node.args[0])
        elif _splits_evenly(node):
            _select_parts(node)
        elif _counts_all(node):
            _sum_ones(node)


def _subtracts_whole(node: fx.Node) -> bool:
    if node.target is not aten.rsub.Scalar:
        return False
    x = node.args[0]
    assert isinstance(x, fx.Node)
    return bool(x.meta["val"].dtype != node.meta["val"].dtype)


def _cast_operand(node: fx.Node) -> None:
    x, *others = node.args
    dtype = node.meta["val"].dtype
    node.args = (insert_before(node, aten._to_copy.default, x, dtype=dtype), *others)


def _squeezes_nothing(node: fx.Node) -> bool:
    """Whether no size that ``squeeze`` names is 1."""
    if op_name(node) != "squeeze" or len(node.args) < 2:
        return False
    x, dims = node.args
    assert isinstance(x, fx.Node)
    named = dims if isinstance(dims, Sequence) else [dims]
    return all(isinstance(d, int) and shape_of(x)[d] > 1 for d in named)


def _splits_evenly(node: fx.Node) -> bool:
    """Whether ``split`` or ``chunk`` makes parts of one dynamic size."""
    if node.target not in {aten.split.Tensor, aten.chunk.default}:
        return False
    sizes = [part.shape[_dim(node)] for part in node.meta["val"]]
    return isinstance(sizes[0], torch.SymInt) and len(set(map(str, sizes))) == 1


def _select_parts(node: fx.Node) -> None:
    x, count = node.args[0], len(node.meta["val"])
    parts = insert_before(node, aten.unflatten.int, x, _dim(node), [count, -1])
    for user in list(node.users):
        part = insert_before(user, aten.select.int, parts, _dim(node), user.args[1])
        user.replace_all_uses_with(part)


def _dim(node: fx.Node) -> int:
    dim = node.args[2] if len(node.args) > 2 else 0
    assert isinstance(dim, int)
    return dim


def _counts_all(node: fx.Node) -> bool:
    """Whether ``histc`` has one bin, and takes its range from the values."""
    if node.target is not aten.histc.default:
        return False
    given = {**_HISTC, **dict(zip(_HISTC, node.args[1:], strict=False)), **node.kwargs}
    return bool(given["bins"] == 1 and given["min"] == given["max"])


def _sum_ones(node: fx.Node) -> None:
    ones = insert_before(node, aten.ones_like.default, node.args[0])
    total = insert_before(node, aten.sum.default, ones)
    node.replace_all_uses_with(insert_before(node, aten.reshape.default, total, [1]))
