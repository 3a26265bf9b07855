"""Mixtures of experts: transformers' grouped matrix product, which torch's exporter does not know."""

from __future__ import annotations

import onnx_ir as ir
from torch import fx
from torch.export import ExportedProgram

from exporters.editor import Editor
from surgery.anatomy.graph import op_name

_SOURCE = "grouped_mm_fallback"
_HELD = ("surgery", "GroupedMatMul")


def hold_products(program: ExportedProgram) -> None:
    """Give every grouped product of a program a name that the exporter passes through, in place."""
    products = [node for node in program.graph.nodes if op_name(node) == _SOURCE]
    if not products:
        return
    editor = Editor(program)
    for node in products:
        rows, weight, _ = operands = node.args
        assert isinstance(rows, fx.Node) and isinstance(weight, fx.Node)
        with editor.before(node):
            shape = [*editor.sizes(rows, 0), *editor.sizes(weight, 2)]
            held = editor.fused(_HELD, operands, {}, shape)
        held.meta["val"] = node.meta["val"]
        editor.replace(node, held)
    editor.finish()


def spell_out_products(model: ir.Model) -> None:
    """Write every grouped product as a loop over the experts that have tokens, in place.

    ``GroupedMatMul(x, W, ends)[s:e] = x[s:e] W[k]`` for each expert k, whose rows ``s:e`` lie between the
    last expert's end and its own. Shapes: x (rows, in), W (experts, in, out), ends (experts,) int. Each
    weight is read where there are rows for it, and multiplied with those alone.
    """
    for node in list(model.graph):
        if (node.domain, node.op_type) == _HELD:
            _spell_out(model.graph, node)
    model.opset_imports.pop(_HELD[0], None)


def _spell_out(graph: ir.Graph, node: ir.Node) -> None:
    x, weight, ends = node.inputs
    assert x is not None and weight is not None and ends is not None
    old, tape = node.outputs[0], ir.tape.Tape()
    op = tape.op
    zero, last = (op("Constant", [], attributes={"value_ints": [n]}) for n in (0, -1))
    ends = op("Cast", [ends], attributes={"to": ir.DataType.INT64})
    before = op("Slice", [ends, zero, last, zero])
    starts = op("Concat", [zero, before], attributes={"axis": 0})
    busy = op("Squeeze", [op("NonZero", [op("Greater", [ends, starts])]), zero])
    trips = op("Squeeze", [op("Shape", [busy]), zero])
    # A sequence takes the type of what it starts from, so this holds in half precision too.
    first = op("Squeeze", [op("Gather", [weight, zero]), zero])
    none = op("MatMul", [op("Slice", [x, zero, zero, zero]), first])
    parts = op("SequenceConstruct", [none])
    body = _product_of_one(f"{old.name}_each", x, weight, starts, ends, busy)
    parts = op("Loop", [trips, None, parts], attributes={"body": body})
    new = op("ConcatFromSequence", [parts], attributes={"axis": 0})
    new.type, new.shape = old.type, old.shape
    ir.convenience.replace_nodes_and_values(graph, node, [node], tape.nodes, [old], [new])


def _product_of_one(
    name: str, x: ir.Value, weight: ir.Value, starts: ir.Value, ends: ir.Value, busy: ir.Value
) -> ir.Graph:
    """The body of the loop: the rows of one expert times its weight, behind the others'."""
    scalar = ir.Shape([])
    trip = ir.Value(type=ir.TensorType(ir.DataType.INT64), shape=scalar)
    going = ir.Value(type=ir.TensorType(ir.DataType.BOOL), shape=scalar)
    parts = ir.Value(type=ir.SequenceType(ir.TensorType(ir.DataType.FLOAT)))
    tape = ir.tape.Tape()
    op = tape.op
    zero = op("Constant", [], attributes={"value_ints": [0]})
    expert = op("Gather", [busy, trip])
    place = op("Unsqueeze", [expert, zero])
    limits = [op("Gather", [bound, place]) for bound in (starts, ends)]
    rows = op("Slice", [x, *limits, zero])
    product = op("MatMul", [rows, op("Gather", [weight, expert])])
    longer = op("SequenceInsert", [parts, product])
    onwards = op("Identity", [going])
    longer.type, onwards.type, onwards.shape = parts.type, going.type, scalar
    inside = [trip, going, parts, *(value for node in tape.nodes for value in node.outputs)]
    for number, value in enumerate(inside):
        value.name = f"{name}_{number}"
    return ir.Graph([trip, going, parts], [onwards, longer], nodes=tape.nodes, name=name)
