"""Writes in place, read as what they leave behind.

``keys[..., :n].copy_(nope)`` changes ``keys`` without an edge of the graph saying so. torch makes most graphs
functional; where it cannot (sizes that follow from values, LongCat), the write is put in as ``slice_scatter``.
"""

from __future__ import annotations

import torch
from torch import fx
from torch.export import ExportedProgram

from surgery.anatomy.graph import op_name

_SCATTERS = {
    "slice": torch.ops.aten.slice_scatter.default,
    "select": torch.ops.aten.select_scatter.default,
}


def without_writes(program: ExportedProgram) -> ExportedProgram:
    """Replace each write into a part of a tensor by a new tensor that later nodes take, in place.

    Args:
        program: A captured program that belongs to the caller; afterwards it is for reading, not for running.
    """
    for node in list(program.graph.nodes):
        if node.target is torch.ops.aten.copy_.default and not node.users:
            parts = _parts(node.args[0])
            if parts and not _seen_elsewhere(parts, node):
                _write(node, parts)
    return program


def _parts(target: fx.Node) -> list[fx.Node]:
    """The chain of slices from what is written to the tensor that owns it."""
    found = []
    while op_name(target) in _SCATTERS:
        found.append(target)
        (target,) = target.all_input_nodes[:1]
    return found


def _seen_elsewhere(parts: list[fx.Node], write: fx.Node) -> bool:
    """Whether a slice taken before the write is used after it: that use would see what was written."""
    owner = parts[-1].args[0]
    assert isinstance(owner, fx.Node)
    views = {view for view in owner.users if view < write} | set(parts)
    later = {user for view in views for user in view.users if user > write}
    return bool(later)


def _write(node: fx.Node, parts: list[fx.Node]) -> None:
    owner = parts[-1].args[0]
    assert isinstance(owner, fx.Node)
    before = set(owner.users)
    graph = node.graph
    with graph.inserting_before(node):
        value = _like(parts[0], graph.call_function(torch.ops.aten.copy.default, node.args), node)
        for part in parts:
            whole, *place = part.args
            assert isinstance(whole, fx.Node)
            scatter = _SCATTERS[op_name(part)]
            value = _like(
                whole, graph.call_function(scatter, (whole, value, *place), dict(part.kwargs)), node
            )
    earlier = {user for user in before if user < node} | set(parts)
    owner.replace_all_uses_with(value, lambda user: user in before and user not in earlier)
    graph.erase_node(node)


def _like(model: fx.Node, made: fx.Node, write: fx.Node) -> fx.Node:
    """``made`` with the shape of ``model``, run by the module that writes."""
    made.meta = {**write.meta, "val": model.meta["val"]}
    return made
