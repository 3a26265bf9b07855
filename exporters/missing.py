"""Functions that ONNX lacks, worked out where their operands are constants."""

from __future__ import annotations

from torch import Tensor
from torch.export import ExportedProgram

from exporters.editor import Editor
from exporters.evaluate import Constants, NotConstantError
from surgery.anatomy.graph import Graph, op_name

_MISSING = frozenset({"erfinv", "special_erfinv", "special_ndtri"})


def work_out_missing(program: ExportedProgram) -> None:
    """Replace such functions of constants by their values, in place; others are torch's exporter's to refuse.

    A quantile of the normal distribution (Gemma 3n makes its activations as sparse as that) is one of them.
    """
    found = [node for node in program.graph.nodes if op_name(node) in _MISSING]
    if not found:
        return
    constants, editor = Constants(Graph(program)), Editor(program)
    for node in found:
        try:
            value: Tensor = constants(node)
        except NotConstantError:
            continue
        node.replace_all_uses_with(editor.constant(f"missing.{node.name}", value))
