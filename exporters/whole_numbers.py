"""What follows from known whole numbers alone, worked out once and for all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from exporters.editor import Editor
from exporters.evaluate import Constants, NotConstantError
from surgery.anatomy.graph import Graph, writes
from surgery.anatomy.known import is_whole


def fold_whole_numbers(program: ExportedProgram) -> None:
    """Replace whole numbers that depend on no input by constants, in place.

    A graph captured with known numbers has shapes that follow from them. torch's exporter traces it again
    without knowing them, and would stop at each such shape.
    """
    values = _known(program)
    editor = Editor(program)
    for node, value in values.items():
        if all(user in values for user in node.users):
            continue
        constant = editor.constant(f"whole_numbers.{node.name}", value.clone())
        node.replace_all_uses_with(constant, lambda user: user not in values)
    for node in reversed(values):
        if not node.users:
            program.graph.erase_node(node)
    editor.finish()


def _known(program: ExportedProgram) -> dict[fx.Node, Tensor]:
    """Value of each node that can be known, in graph order: a write in place changes what was there before."""
    evaluate, values = Constants(Graph(program)), dict[fx.Node, Tensor]()
    for node in program.graph.nodes:
        if node.op != "call_function" or not _whole_throughout(node):
            continue
        try:
            found: Any = evaluate(node)
        except NotConstantError:
            continue
        if isinstance(found, Tensor):
            values[node] = found
    # What is written to later, with something that is not known, is no constant, nor are views of it.
    written = {
        _memory(values[node.args[0]])
        for node in program.graph.nodes
        if node not in values and writes(node) and node.args[0] in values
    }
    return {node: value for node, value in values.items() if _memory(value) not in written}


def _memory(value: Tensor) -> int:
    return value.untyped_storage().data_ptr()


def _whole_throughout(node: fx.Node) -> bool:
    """Whether a node makes whole numbers, or a list of them, from nothing else."""
    values = [n.meta.get("val") for n in (node, *node.all_input_nodes)]
    flat = [v for value in values for v in (value if isinstance(value, tuple | list) else [value])]
    return all(is_whole(v) or isinstance(v, int | torch.SymInt) for v in flat)
