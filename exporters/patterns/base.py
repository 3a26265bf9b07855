"""The vocabulary that all patterns share: a refusal with its reason, and which operators do what."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from surgery.anatomy.graph import op_name
from surgery.anatomy.operators import SHAPE_FROM_SECOND


@dataclass(frozen=True)
class Refusal:
    """Why a region of the graph is left as it is: one sentence with the offending operator."""

    why: str


LOWEST = -1e30
"""A summand at or below this hides whatever it is added to: in fp32 no score is left in the sum."""

HIDDEN = torch.finfo(torch.float32).min
"""What the operators are told to add to the scores of padding; their own -1e4 is too little for large ones."""

MOVES = frozenset(
    [
        "view",
        "reshape",
        "reshape_as",
        "view_as",
        "_unsafe_view",
        "permute",
        "transpose",
        "t",
        "numpy_T",
        "mT",
        "swapaxes",
        "movedim",
        "contiguous",
        "clone",
        "squeeze",
        "unsqueeze",
        "flatten",
        "unflatten",
        "split",
        "split_with_sizes",
        "chunk",
        "tensor_split",
        "unbind",
        "getitem",
        "select",
        "slice",
        "narrow",
        "alias",
        "detach",
    ]
)
"""Operators that only move values; what they do to an index tensor is what they do to any."""


def is_move(node: fx.Node) -> bool:
    """Whether the node only moves the values of its first input."""
    return node.op == "call_function" and op_name(node) in MOVES


def keeps_values(node: fx.Node) -> bool:
    """Whether the node hands its input on unchanged: dropout in eval mode, a cast to the same dtype."""
    name = op_name(node)
    if name == "dropout":
        return not (node.args[1] and node.args[2])
    if name in {"to", "_to_copy", "type_as"}:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        return bool(node.meta["val"].dtype == source.meta["val"].dtype)
    return False


def scale_factor(node: fx.Node) -> float | None:
    """The number a node multiplies its input with, or None if it does something else."""
    name = op_name(node)
    if name not in {"mul", "div"} or len(node.args) < 2 or "rounding_mode" in node.kwargs:
        return None
    number = next((arg for arg in node.args[:2] if isinstance(arg, int | float)), None)
    if number is None or (name == "div" and not isinstance(node.args[0], fx.Node)):
        return None
    return 1 / number if name == "div" else float(number)


def readers(node: fx.Node) -> list[fx.Node]:
    """The users that read the node's values, not just its shape."""
    return [user for user in node.users if not _reads_shape(user, node)]


def _reads_shape(user: fx.Node, node: fx.Node) -> bool:
    name = op_name(user)
    return name == "sym_size" or (name in SHAPE_FROM_SECOND and user.args[0] is not node)
