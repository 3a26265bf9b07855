"""Regions that a model runs under another setting (``with torch.autocast(...)``, ``torch.no_grad()``).

torch.export puts each into a graph of its own. Data flows through them all the same, so they are read in place.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

_GRADIENTS = frozenset({"wrap_with_set_grad_enabled"})
_WRAPPERS = _GRADIENTS | {"wrap_with_autocast"}


def inline(program: ExportedProgram) -> ExportedProgram:
    """Replace each wrapped region by its nodes, in place.

    Args:
        program: A captured program that belongs to the caller; afterwards it is for reading, not for running:
            the settings of the regions are gone.
    """
    _inline(program.graph_module, _WRAPPERS)
    return program


def inline_gradients(program: ExportedProgram) -> ExportedProgram:
    """Replace the regions under ``torch.no_grad`` alone, in place; what they give is detached, so it still runs.

    Args:
        program: A program that was captured with gradients enabled.
    """
    _inline(program.graph_module, _GRADIENTS)
    return program


def _inline(owner: fx.GraphModule, kinds: frozenset[str]) -> None:
    for node in list(owner.graph.nodes):
        if _kind(node) in _WRAPPERS:
            region = _region(node, owner)
            _inline(region, kinds)
            if _kind(node) in kinds:
                _unwrap(node, region, owner)
    owner.recompile()


def _kind(node: fx.Node) -> str:
    return getattr(node.target, "__name__", "")


def _region(node: fx.Node, owner: fx.GraphModule) -> fx.GraphModule:
    reference = node.args[_position(node)]
    assert isinstance(reference, fx.Node)
    region = getattr(owner, str(reference.target))
    assert isinstance(region, fx.GraphModule)
    return region


def _position(node: fx.Node) -> int:
    """Where among the arguments the graph is; the region's own arguments follow."""
    return next(i for i, a in enumerate(node.args) if isinstance(a, fx.Node) and a.op == "get_attr")


def _unwrap(node: fx.Node, region: fx.GraphModule, owner: fx.GraphModule) -> None:
    placeholders = [n for n in region.graph.nodes if n.op == "placeholder"]
    given = node.args[_position(node) + 1 :]
    values = dict(zip(placeholders, given, strict=True))
    with node.graph.inserting_before(node):
        values |= {n: _moved(n, region, owner) for n in region.graph.nodes if n.op == "get_attr"}
        results = node.graph.graph_copy(region.graph, values)
    cuts = _kind(node) in _GRADIENTS and node.args[0] is False
    _hand_over(node, results if isinstance(results, list | tuple) else (results,), cuts)
    node.graph.erase_node(node)


def _moved(reference: fx.Node, region: fx.GraphModule, owner: fx.GraphModule) -> fx.Node:
    """A graph within the region becomes one of its owner's."""
    name = f"{reference.target}_{len(owner._modules)}"
    owner.add_submodule(name, getattr(region, str(reference.target)))
    node = owner.graph.get_attr(name)
    node.meta = dict(reference.meta)
    return node


def _hand_over(node: fx.Node, parts: Sequence[fx.Node], cuts: bool) -> None:
    """Users take the results themselves: each is a ``getitem`` of the region's tuple."""
    for user in list(node.users):
        if user.target is operator.getitem and isinstance(user.args[1], int):
            part = parts[user.args[1]]
            if cuts and isinstance(part.meta.get("val"), Tensor):
                user.target, user.args = torch.ops.aten.detach.default, (part,)
                user.meta = dict(part.meta)
            else:
                user.replace_all_uses_with(part)
                node.graph.erase_node(user)
