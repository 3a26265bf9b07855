"""Whether a weight is read by its own module alone, or also in ways that no adapter on the module's output follows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import fx

from surgery.anatomy.graph import op_name, writes
from surgery.anatomy.operators import FACTORIES
from surgery.anatomy.types import Access
from surgery.anatomy.weights import PARTS

if TYPE_CHECKING:
    from surgery.anatomy.linears import LinearReader


def read_otherwise(reader: LinearReader) -> frozenset[str]:
    """Every name of the parameters of which some use is no product made by their own module (a penalty, a gate)."""
    inputs = [node for node in reader.graph.program.graph.nodes if node.op == "placeholder"]
    used = {reader.graph.tensor_name(node) for node in inputs if not _only_called(node, reader)}
    weights = [reader.parameters[name] for name in used if name in reader.parameters]
    return frozenset(alias for weight in weights for alias in reader.owners[id(weight)])


def _only_called(source: fx.Node, reader: LinearReader) -> bool:
    stack = [source]
    while stack:
        for user in stack.pop().users:
            if reader.weight(user) is not None or op_name(user) in PARTS:
                stack.append(user)
            elif not (_is_own_product(user, source, reader) or _ignores_values(user)):
                return False
    return True


def _is_own_product(user: fx.Node, source: fx.Node, reader: LinearReader) -> bool:
    read = reader.by_node.get(user)
    return read is not None and read.source is source and read.access is Access.MODULE


def _ignores_values(user: fx.Node) -> bool:
    """Whether a use of a tensor is an assertion on its dtype or makes a tensor of its shape."""
    asserts = not user.users and user.op != "output" and not writes(user)
    return asserts or op_name(user) in FACTORIES
