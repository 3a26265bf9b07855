"""Regions that a model runs under another setting (``with torch.autocast(...)``, ``torch.no_grad()``).

torch.export puts each into a graph of its own. Data flows through them all the same, so they are read in place.
"""

from __future__ import annotations

import operator

from torch import fx
from torch.export import ExportedProgram

_WRAPPERS = frozenset({"wrap_with_autocast", "wrap_with_set_grad_enabled"})


def inline(program: ExportedProgram) -> ExportedProgram:
    """Replace each wrapped region by its nodes, in place.

    Args:
        program: A captured program that belongs to the caller; afterwards it is for reading, not for running:
            the settings of the regions are gone.
    """
    found = True
    while found:
        found = False
        for node in list(program.graph.nodes):
            if getattr(node.target, "__name__", "") in _WRAPPERS:
                _unwrap(node, program.graph_module)
                found = True
    return program


def _unwrap(node: fx.Node, owner: fx.GraphModule) -> None:
    position = next(i for i, a in enumerate(node.args) if _is_graph(a))
    reference = node.args[position]
    assert isinstance(reference, fx.Node)
    region: fx.GraphModule = getattr(owner, str(reference.target))
    placeholders = [n for n in region.graph.nodes if n.op == "placeholder"]
    values = dict(zip(placeholders, node.args[position + 1 :], strict=True))
    with node.graph.inserting_before(node):
        results = node.graph.graph_copy(region.graph, values)
    _hand_over(node, results)
    node.graph.erase_node(node)


def _hand_over(node: fx.Node, results: object) -> None:
    """Users take the results themselves: each is a ``getitem`` of the region's tuple."""
    parts = results if isinstance(results, list | tuple) else (results,)
    for user in list(node.users):
        if user.target is operator.getitem and isinstance(user.args[1], int):
            user.replace_all_uses_with(parts[user.args[1]])
            node.graph.erase_node(user)


def _is_graph(argument: object) -> bool:
    return isinstance(argument, fx.Node) and argument.op == "get_attr"
