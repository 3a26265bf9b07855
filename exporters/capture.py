"""From a plain model to an exported program with named inputs, outputs and dynamic axes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from torch import SymInt, Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind, TensorArgument
from torch.utils import _pytree as pytree

from exporters.axes import BATCH
from exporters.complex_numbers import write_real
from exporters.edits import drop_unread, placeholders
from exporters.errors import ExportError
from exporters.inputs import Inputs, identifier
from exporters.missing import work_out_missing
from exporters.ranges import limits_of, told
from exporters.respell import respell
from exporters.towers import told_apart
from exporters.tracing import spelled, trace
from surgery.anatomy.graph import op_name

_ENCODER = "torch's fast path of TransformerEncoder gives 0 for padding: the file, as any graph, other values"


@dataclass(frozen=True)
class Captured:
    """A program ready to become ONNX.

    Attributes:
        program: Exported at batch 2 and no open size below, so that none is mistaken for a constant 1.
        inputs: What it was exported on; its axes are those that stayed dynamic.
        outputs: Name of each output tensor.
        symbols: The axis behind each symbol of the graph, ``{"s77": "batch"}``, or the number that it is.
        limits: Smallest and largest size of each axis that the model accepts.
        notes: Axes that were asked for and that the model fixes, or sizes for which the graph does not hold.
    """

    program: ExportedProgram
    inputs: Inputs
    outputs: tuple[str, ...]
    symbols: dict[str, str]
    limits: dict[str, tuple[int, int]]
    notes: tuple[str, ...] = ()

    @property
    def shapes(self) -> list[tuple[int | SymInt, ...]]:
        """Of each output."""
        values = self.program.graph.output_node().args[0]
        assert isinstance(values, tuple | list)
        tensors = [value.meta["val"] for value in values if isinstance(value, fx.Node)]
        return [tuple(value.shape) for value in tensors if isinstance(value, Tensor)]


def capture(model: nn.Module, inputs: Inputs) -> Captured:
    """Export ``model`` with the dynamic axes of ``inputs``, as far as the model allows them.

    Raises:
        CaptureError: If the graph cannot be captured.
        ExportError: If the model fixes a size at 2 that was 1 in the example, or its batch size; if it returns
            no tensor.
    """
    raised = _raised(inputs)
    if raised:
        inputs = inputs.resized(raised, keep=lambda name, value: True)
    traced = trace(model, inputs)
    program, inputs = traced.program, traced.inputs
    _tidy(program)
    outputs = _output_names(program, model)
    inputs = told_apart(program, inputs) if inputs.proposed else inputs
    found, fixed = _symbols(program, inputs)
    _check_open(model, [axis for axis in raised if axis in fixed])
    symbols = {symbol: axis for symbol, axis in found.items() if axis not in fixed}
    limits = limits_of(program, symbols)
    notes = [
        *inputs.notes,
        *(f"{name} is no tensor: left out" for name in sorted(traced.left_out)),
        *(f"{axis} is fixed at {size}: the model allows no other" for axis, size in fixed.items()),
        *(_ENCODER for module in model.modules() if isinstance(module, nn.TransformerEncoder)),
        *told(program, symbols, limits),
    ]
    axes = {
        name: {dim: axis for dim, axis in dims.items() if axis not in fixed}
        for name, dims in inputs.axes.items()
    }
    # Where one input fixes a size, another of that name may have left it open.
    closed = {symbol: str(fixed[axis]) for symbol, axis in found.items() if axis in fixed}
    return Captured(
        program, replace(inputs, axes=axes), outputs, symbols | closed, limits,
        tuple(dict.fromkeys(notes)),
    )  # fmt: skip


def _raised(inputs: Inputs) -> dict[str, int]:
    """Size 2 for the batch, and for what the user calls open and has at 1, which torch takes for a constant."""
    named = not inputs.proposed
    return {a: 2 for a, size in inputs.sizes.items() if a == BATCH or (named and size == 1)}


def _check_open(model: nn.Module, fixed: Collection[str]) -> None:
    """Refuse a graph that fixes a size which is not the example's."""
    for axis in fixed:
        raise ExportError(
            f"{type(model).__name__} works at one {axis} size only",
            why=f"its graph turns the {axis} size into a constant",
            remedy="pass example_inputs= of the size to serve, and dynamic=False or a mapping without it",
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


def _output_names(program: ExportedProgram, model: nn.Module) -> tuple[str, ...]:
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
    if not names:
        raise ExportError(
            f"{type(model).__name__} returns no tensor",
            why="an ONNX graph returns tensors, and nothing else",
            remedy="let forward return a tensor, or a tuple or mapping that holds some",
        )
    return tuple(f"output_{name}" if identifier(name) in taken else name for name in names)
