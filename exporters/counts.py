"""Counts and angles: what a file of fewer bits must still compute in fp32."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

_SINGLE, _HALF = int(ir.DataType.FLOAT), int(ir.DataType.FLOAT16)
_PRODUCTS = ("MatMul", "Gemm")
_WAVES = ("Sin", "Cos")
_LAYERS = (
    "Conv", "ConvTranspose", "Attention", "MultiHeadAttention", "GroupQueryAttention",
)  # fmt: skip
_NO_COUNT = (*_PRODUCTS, *_LAYERS, "Gather")
_NO_ANGLE = (*_WAVES, *_LAYERS, "Loop", "If", "Scan")

_COORDINATES = 4
"""A place has this many numbers at most; a product over more of them is a layer of the network."""


def keep_exact(model: ir.Model) -> list[str]:
    """Names of the nodes that compute counts and angles, which half precision would falsify.

    It is exact up to 2048 only, puts the edges of bins elsewhere, and is 5e-4 of an angle off: a tenth of a
    turn at the thousandth position. Constants that such nodes read become nodes too, in place: the converter
    rounds every initializer.
    """
    nodes = dict.fromkeys((*_counts(model.graph), *_angles(model.graph)))
    constants = [made for node in nodes for made in _constants(model.graph, node)]
    return [str(node.name) for node in (*nodes, *constants)]


def angle_products(model: ir.Model) -> list[str]:
    """Names of the products of positions and frequencies, which 8 bits would falsify."""
    return [str(node.name) for node in _angles(model.graph) if node.op_type in _PRODUCTS]


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


def _counts(graph: ir.Graph) -> Iterator[ir.Node]:
    """What lies between whole numbers and whole numbers: counts, bins and places."""
    for node in graph:
        whole = node.op_type == "Cast" and _kind(node.outputs[0]).is_integer()
        if whole and _kind(node.inputs[0]).is_floating_point():
            sources, behind = _behind(node)
            if not sources and all(each.op_type not in _NO_COUNT for each in behind):
                yield from (node, *behind)


def _angles(graph: ir.Graph) -> Iterator[ir.Node]:
    """What lies between positions and their sines and cosines.

    A sine of what layers have computed is an activation of the network, and none of these.
    """
    for node in graph:
        if node.op_type in _WAVES:
            _, behind = _behind(node)
            if not any(map(_is_layer, behind)):
                yield from (node, *behind)


def _is_layer(node: ir.Node) -> bool:
    """Whether a node computes activations, as far as the way to an angle goes."""
    if node.op_type in _PRODUCTS:
        return not _places(node)
    return node.op_type in _NO_ANGLE


def _places(product: ir.Node) -> bool:
    """Whether a product is one of places, each of a few coordinates, and frequencies."""
    right = product.inputs[1]
    shape = right.shape if right is not None else None
    if shape is None:
        return False
    turned = product.op_type == "Gemm" and product.attributes.get_int("transB", 0)
    summed = shape[-1] if turned or len(shape) == 1 else shape[-2]
    return isinstance(summed, int) and summed <= _COORDINATES


def _behind(last: ir.Node) -> tuple[list[ir.Value], list[ir.Node]]:
    """Where the way back from a node ends that is neither whole nor constant, and the nodes on it."""
    sources: dict[ir.Value, None] = {}
    found: dict[ir.Node, None] = {}
    reached = [last]
    while reached:
        for value in reached.pop().inputs:
            if value is None or _kind(value).is_integer() or value.is_initializer():
                continue
            node = value.producer()
            if node is None:
                sources[value] = None
            elif node not in found:
                found[node] = None
                reached.append(node)
    return list(sources), list(found)


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
