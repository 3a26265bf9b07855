"""From a plain model to an exported program with named inputs, outputs and dynamic axes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind, TensorArgument
from torch.utils import _pytree as pytree

from exporters.axes import BATCH
from exporters.complex_numbers import write_real
from exporters.edits import drop_unread
from exporters.errors import ExportError
from exporters.inputs import Inputs, identifier
from exporters.missing import work_out_missing
from exporters.ranges import limits_of, told
from exporters.respell import respell
from exporters.tracing import spelled, trace
from surgery.anatomy.graph import op_name


@dataclass(frozen=True)
class Captured:
    """A program ready to become ONNX.

    Attributes:
        program: Exported at batch 2, so that no size is mistaken for a constant 0 or 1.
        inputs: What it was exported on; its axes are those that stayed dynamic.
        outputs: Name of each output tensor.
        symbols: The graph's own symbol of each axis, ``{"s77": "batch"}``.
        limits: Smallest and largest size of each axis that the model accepts.
        notes: Axes that were asked for and that the model fixes, or sizes for which the graph does not hold.
    """

    program: ExportedProgram
    inputs: Inputs
    outputs: tuple[str, ...]
    symbols: dict[str, str]
    limits: dict[str, tuple[int, int]]
    notes: tuple[str, ...] = ()


def capture(model: nn.Module, inputs: Inputs) -> Captured:
    """Export ``model`` with the dynamic axes of ``inputs``, as far as the model allows them.

    Raises:
        CaptureError: If the graph cannot be captured.
        ExportError: If the model fixes its batch size, or returns no tensor.
    """
    if inputs.sizes.get(BATCH, 2) != 2:
        inputs = inputs.resized({BATCH: 2}, keep=lambda name, value: True)
    traced = trace(model, inputs)
    program, inputs = traced.program, traced.inputs
    _tidy(program)
    outputs = _output_names(program)
    if not outputs:
        raise ExportError(
            f"{type(model).__name__} returns no tensor",
            why="an ONNX graph returns tensors, and nothing else",
            remedy="let forward return a tensor, or a tuple or mapping that holds some",
        )
    symbols, fixed = _symbols(program, inputs)
    if BATCH in fixed:
        raise ExportError(
            f"{type(model).__name__} works at one batch size only",
            why="its graph turns the batch size into a constant",
            remedy="pass example_inputs= of the batch size to serve, and dynamic=False",
        )
    limits = limits_of(program, symbols)
    notes = [
        *inputs.notes,
        *(f"{name} is no tensor: left out" for name in sorted(traced.left_out)),
        *(f"{axis} is fixed at {size}: the model allows no other" for axis, size in fixed.items()),
        *told(program, symbols, limits),
    ]
    axes = {
        name: {dim: axis for dim, axis in dims.items() if axis not in fixed}
        for name, dims in inputs.axes.items()
    }
    return Captured(
        program,
        replace(inputs, axes=axes),
        outputs,
        symbols,
        limits,
        tuple(notes),
    )


def _tidy(program: ExportedProgram) -> None:
    """Drop what a graph asserts about values, which ONNX cannot, and what nobody reads.

    Averaged attention weights that nobody asked for, or a guess about a dtype, would look like a second reader.
    """
    for node in program.graph.nodes:
        if op_name(node).startswith("_assert_"):
            program.graph.erase_node(node)
    write_real(program)
    respell(program.graph)
    work_out_missing(program)
    drop_unread(program.graph)


def placeholders(program: ExportedProgram) -> dict[str, fx.Node]:
    """The graph's user inputs by name."""
    names = set(program.graph_signature.user_inputs)
    return {n.name: n for n in program.graph.nodes if n.op == "placeholder" and n.name in names}


def _symbols(program: ExportedProgram, inputs: Inputs) -> tuple[dict[str, str], dict[str, int]]:
    """The axis behind each symbol of the graph, and the axes that are numbers in it."""
    symbols: dict[str, str] = {}
    fixed: dict[str, int] = {}
    nodes = placeholders(program)
    for name, axes in inputs.axes.items():
        for dim, axis in axes.items():
            size = nodes[identifier(name)].meta["val"].shape[dim]
            number = size if isinstance(size, int) else size.node.maybe_as_int()
            if number is None:
                symbols[str(size)] = axis
            else:
                fixed[axis] = number
    return symbols, fixed


def _output_names(program: ExportedProgram) -> tuple[str, ...]:
    """As the model calls them; one that has the name of an input gets another, as ONNX wants it."""
    taken = placeholders(program)
    specs = [s for s in program.graph_signature.output_specs if s.kind is OutputKind.USER_OUTPUT]
    tree = pytree.tree_unflatten(list(range(len(specs))), program.call_spec.out_spec)
    paths, _ = pytree.tree_flatten_with_path(tree)
    names = [
        spelled(path)
        for (path, _), spec in zip(paths, specs, strict=True)
        if isinstance(spec.arg, TensorArgument)
    ]
    return tuple(f"output_{name}" if identifier(name) in taken else name for name in names)
