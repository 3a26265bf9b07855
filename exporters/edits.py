"""A captured graph by hand: its inputs, a node more, unread ones less, a name for a constant."""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import chain, count
from typing import Any

import torch
from torch import fx
from torch._subclasses import FakeTensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from surgery.anatomy.graph import op_name, writes


def placeholders(program: ExportedProgram) -> dict[str, fx.Node]:
    """The graph's user inputs by name."""
    names = set(program.graph_signature.user_inputs)
    return {n.name: n for n in program.graph.nodes if n.op == "placeholder" and n.name in names}


def know_readers(graph: fx.Graph) -> None:
    """Let every node know who reads it: torch forgets some where a ``torch.no_grad()`` of the model ends."""
    for node in graph.nodes:
        for source in node.all_input_nodes:
            source.users.setdefault(node)


def drop_unread(graph: fx.Graph) -> None:
    """Drop what nobody reads, but for the marks of where ``vmap`` starts and ends, in place."""
    graph.eliminate_dead_code(
        lambda node: "vmap" in op_name(node) or (node.is_impure() and not _merely_draws(node))
    )


def _merely_draws(node: fx.Node) -> bool:
    """Whether all that keeps it is the random state: attention could draw a dropout, a file never does."""
    tags = getattr(node.target, "tags", ())
    return torch.Tag.nondeterministic_seeded in tags and not writes(node)


def insert_before(node: fx.Node, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
    """Call an operator before ``node``; the new node knows its own value, as captured ones do."""
    with node.graph.inserting_before(node):
        made: fx.Node = node.graph.call_function(target, args, kwargs)
    values, named = fx.node.map_arg((args, kwargs), lambda each: each.meta["val"])
    known = pytree.tree_leaves([node.meta["val"], *values])
    with next(value.fake_mode for value in known if isinstance(value, FakeTensor)):
        made.meta["val"] = target(*values, **named)
    return made


def free_name(name: str, taken: Collection[str]) -> str:
    """``name``, or one like it, that is none of those taken, lies inside none and holds none.

    Names are paths. A model with a module ``attention`` has an ``attention.weight`` of its own, and one
    with a parameter ``rotary`` has no place for ``rotary.cos``.
    """
    spellings = (f"{name.replace('.', '_')}_{number}" for number in count(1))
    return next(
        new for new in chain([name], spellings) if not any(_clash(new, old) for old in taken)
    )


def _clash(name: str, other: str) -> bool:
    """Whether two paths are one, or one leads through the other."""
    shorter, longer = sorted((f"{name}.", f"{other}."), key=len)
    return longer.startswith(shorter)
