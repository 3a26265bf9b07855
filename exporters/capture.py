"""From a plain model to an exported program with named inputs, outputs and dynamic axes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind, TensorArgument
from torch.utils import _pytree as pytree

from exporters.axes import BATCH
from exporters.complex_numbers import write_real
from exporters.edits import drop_unread, placeholders
from exporters.errors import ExportError
from exporters.inputs import Inputs, everything, identifier
from exporters.missing import work_out_missing
from exporters.ranges import limits_of, told
from exporters.respell import respell
from exporters.towers import told_apart
from exporters.tracing import spelled, trace
from surgery.anatomy.graph import op_name
from surgery.errors import SurgeryError


@dataclass(frozen=True)
class Captured:
    """A program ready to become ONNX.

    Attributes:
        program: Exported at batch 2, so that no size is mistaken for a constant 1.
        inputs: What it was exported on; its axes are those that stayed dynamic.
        outputs: Name of each output tensor.
        symbols: The axis behind each symbol of the graph, ``{"s77": "batch"}``, or the number that it is.
        limits: Smallest and largest size of each axis that the model accepts.
        notes: Axes that were asked for and that the model fixes, or sizes for which the graph does not hold.
        raised: Axes that are 1 in the example.
    """

    program: ExportedProgram
    inputs: Inputs
    outputs: tuple[str, ...]
    symbols: dict[str, str]
    limits: dict[str, tuple[int, int]]
    notes: tuple[str, ...] = ()
    raised: frozenset[str] = frozenset()

    @property
    def values(self) -> list[Tensor]:
        """What the graph returns, as torch.export knows it: shapes and dtypes."""
        returned = self.program.graph.output_node().args[0]
        assert isinstance(returned, tuple | list)
        found = [value.meta["val"] for value in returned if isinstance(value, fx.Node)]
        return [value for value in found if isinstance(value, Tensor)]


def capture(model: nn.Module, inputs: Inputs) -> Captured:
    """Export ``model`` with the dynamic axes of ``inputs``, as far as the model allows them.

    torch takes a size of 1 for a constant. The batch is 2, therefore, and so is what the user calls open and
    has at 1, where the model takes that.

    Raises:
        CaptureError: If the graph cannot be captured.
        ExportError: If the model fixes its batch size, or returns no tensor.
    """
    raised = frozenset(a for a, n in inputs.sizes.items() if n == 1 and a != BATCH)
    if raised and not inputs.proposed:
        try:
            found = _capture(model, _at_two(inputs, raised | {BATCH}))
        except SurgeryError:
            pass  # the sizes go with others that are not open, or broadcast
        else:
            if raised <= found.inputs.sizes.keys():
                return replace(found, raised=raised)
    return _capture(model, _at_two(inputs, {BATCH}))


def _at_two(inputs: Inputs, axes: Collection[str]) -> Inputs:
    others = {axis: 2 for axis, size in inputs.sizes.items() if axis in axes and size != 2}
    return inputs.resized(others, keep=everything) if others else inputs


def _capture(model: nn.Module, inputs: Inputs) -> Captured:
    traced = trace(model, inputs)
    program, inputs = traced.program, traced.inputs
    _tidy(program)
    outputs = _output_names(program, model)
    inputs = told_apart(program, inputs, model) if inputs.proposed else inputs
    found, fixed = _symbols(program, inputs)
    _check_batch(model, [axis for axis in fixed if axis == BATCH or inputs.proposed])
    symbols = {symbol: axis for symbol, axis in found.items() if axis not in fixed}
    limits = limits_of(program, symbols)
    # Where one input fixes a size, another of that name may have left it open.
    closed = {symbol: str(fixed[axis]) for symbol, axis in found.items() if axis in fixed}
    notes = [
        *inputs.notes,
        *(f"{name} is no tensor: left out" for name in sorted(traced.left_out)),
        *(_told_fixed(axis, size, axis in found.values()) for axis, size in fixed.items()),
        *told(program, symbols, limits),
    ]
    axes = {
        name: {dim: axis for dim, axis in dims.items() if axis not in fixed}
        for name, dims in inputs.axes.items()
    }
    return Captured(
        program, replace(inputs, axes=axes), outputs, symbols | closed, limits, tuple(notes)
    )


def _told_fixed(axis: str, size: int, elsewhere: bool) -> str:
    also = f", so in all inputs that have a {axis}" if elsewhere else ""
    return f"{axis} is fixed at {size}: the model allows no other{also}"


def _check_batch(model: nn.Module, fixed: Collection[str]) -> None:
    """Refuse a graph that fixes a batch which is not the example's."""
    if any(axis.endswith(BATCH) for axis in fixed):
        raise ExportError(
            f"{type(model).__name__} works at one batch size only",
            why="its graph turns the batch size into a constant",
            remedy="pass example_inputs= of the batch size to serve, and dynamic=False",
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
                known = symbols.setdefault(str(size), axis)
                if known != axis:
                    raise _two_names(known, axis, name)
            else:
                fixed[axis] = number
    return symbols, fixed


def _two_names(known: str, axis: str, name: str) -> ExportError:
    return ExportError(
        f"{known} and {axis} are two names for one size",
        where=name,
        why="the model takes no inputs in which they differ",
        remedy=f"call both {known}, or leave {axis} out of dynamic=",
    )


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
