"""Counting in floating point: what a file in half precision must compute in fp32."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

_SINGLE, _HALF = int(ir.DataType.FLOAT), int(ir.DataType.FLOAT16)
_NO_COUNT = (
    "MatMul", "Gemm", "Conv", "Gather", "Attention", "MultiHeadAttention", "GroupQueryAttention",
)  # fmt: skip


def keep_counts(model: ir.Model) -> list[str]:
    """Names of the nodes between whole numbers and whole numbers: counts, bins and places must be exact.

    Half precision is exact up to 2048 only, and puts the edges of bins elsewhere. Constants that such nodes
    read become nodes too, in place: the converter rounds every initializer.
    """
    nodes: dict[ir.Node, None] = {}
    for node in model.graph:
        whole = node.op_type == "Cast" and _kind(node.outputs[0]).is_integer()
        if whole and _kind(node.inputs[0]).is_floating_point():
            nodes.update(dict.fromkeys(_behind(node)))
    constants = [made for node in nodes for made in _constants(model.graph, node)]
    return [str(node.name) for node in (*nodes, *constants)]


def drop_detours(model: ir.Model) -> None:
    """Remove what the converter puts between two nodes that stay fp32: a cast to half precision and back, in place."""
    for node in model.graph:
        before = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        if before is None or not (_casts(node, _SINGLE) and _casts(before, _HALF)):
            continue
        if node.outputs[0].is_graph_output():
            continue
        source = before.inputs[0]
        assert source is not None
        ir.convenience.replace_all_uses_with(node.outputs[0], source)
    RemoveUnusedNodesPass()(model)


def _casts(node: ir.Node, kind: int) -> bool:
    return node.op_type == "Cast" and bool(node.attributes["to"].as_int() == kind)


def _kind(value: ir.Value | None) -> ir.DataType:
    return (value.dtype if value is not None else None) or ir.DataType.UNDEFINED


def _behind(cast: ir.Node) -> list[ir.Node]:
    """The nodes that compute what a cast makes whole, if they start from whole numbers and multiply none."""
    found: dict[ir.Node, None] = {cast: None}
    reached = [cast]
    while reached:
        for value in reached.pop().inputs:
            if value is None or _kind(value).is_integer() or value.is_initializer():
                continue
            node = value.producer()
            if node is None or node.op_type in _NO_COUNT:
                return []
            if node not in found:
                found[node] = None
                reached.append(node)
    return list(found)


def _constants(graph: ir.Graph, node: ir.Node) -> list[ir.Node]:
    made = []
    for place, value in enumerate(node.inputs):
        if value is None or not value.is_initializer() or not _kind(value).is_floating_point():
            continue
        constant = ir.node("Constant", [], attributes={"value": value.const_value})
        graph.insert_before(node, constant)
        node.replace_input_with(place, constant.outputs[0])
        made.append(constant)
    return made
