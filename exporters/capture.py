"""From a plain model to an exported program with named inputs, outputs and dynamic axes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.dynamic_shapes import refine_dynamic_shapes_from_suggested_fixes
from torch.export.graph_signature import OutputKind, TensorArgument
from torch.utils import _pytree as pytree

from exporters.errors import ExportError
from exporters.inputs import BATCH, Inputs
from surgery.anatomy.capture import capture as capture_graph
from surgery.errors import CaptureError

_ATTEMPTS = 4
_UNBOUNDED = 2**31

Shapes = dict[str, dict[int, Any] | None]


@dataclass(frozen=True)
class Captured:
    """A program ready to become ONNX.

    Attributes:
        program: Exported at batch 2, so that no size is mistaken for a constant 0 or 1.
        inputs: What it was exported on; its axes are those that stayed dynamic.
        outputs: Name of each output tensor.
        symbols: The graph's own symbol of each axis, ``{"s77": "batch"}``.
        limits: Smallest and largest size of each axis that the model accepts.
        notes: Axes that were asked for and that the model fixes.
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
        ExportError: If the model fixes its batch size.
    """
    if BATCH in inputs.sizes:
        inputs = inputs.resized({BATCH: 2})
    program, shapes = _export(model, inputs)
    kept = {name: _kept(inputs.axes[name], dims) for name, dims in shapes.items() if dims}
    notes = tuple(
        f"{axis} is fixed at {size}: the model allows no other"
        for axis, size in inputs.sizes.items()
        if axis not in {a for axes in kept.values() for a in axes.values()}
    )
    if any(note.startswith(f"{BATCH} ") for note in notes):
        raise ExportError(
            f"{type(model).__name__} works at one batch size only",
            why="its graph turns the batch size into a constant",
            remedy="pass example_inputs= of the batch size to serve, and dynamic=False",
        )
    inputs = Inputs(inputs.tensors, inputs.constants, kept)
    symbols = _symbols(program, inputs)
    return Captured(
        program, inputs, _output_names(program), symbols, _limits(program, symbols), notes
    )


def _export(model: nn.Module, inputs: Inputs) -> tuple[ExportedProgram, Shapes]:
    """Export; where a guard narrows a dimension, narrow it as torch suggests and try again."""
    dims: dict[str, Any] = {axis: Dim(axis) for axis in inputs.sizes}
    shapes: Any = {
        name: {dim: dims[axis] for dim, axis in inputs.axes.get(name, {}).items()}
        for name in inputs.tensors
    }
    for attempt in range(_ATTEMPTS):
        given = {**shapes, **dict.fromkeys(inputs.constants)} if dims else None
        try:
            # With gradients on, SDPA with a mask decomposes to strides that a dynamic batch
            # cannot view.
            with torch.no_grad():
                return capture_graph(model, (), inputs.kwargs, dynamic_shapes=given), shapes
        except CaptureError as error:
            message = str(error.__cause__)
            if "Suggested fixes:" not in message or attempt == _ATTEMPTS - 1:
                raise
            fixes, _, _ = message.partition("\n\nThe error above")
            shapes = refine_dynamic_shapes_from_suggested_fixes(fixes, shapes)
    raise AssertionError("the last attempt either returns or raises")


def _kept(axes: Any, dims: dict[int, Any]) -> dict[int, str]:
    return {dim: axis for dim, axis in axes.items() if not isinstance(dims.get(dim), int)}


def placeholders(program: ExportedProgram) -> dict[str, fx.Node]:
    """The graph's user inputs by name."""
    names = set(program.graph_signature.user_inputs)
    return {n.name: n for n in program.graph.nodes if n.op == "placeholder" and n.name in names}


def _symbols(program: ExportedProgram, inputs: Inputs) -> dict[str, str]:
    nodes = placeholders(program)
    return {
        str(nodes[name].meta["val"].shape[dim]): axis
        for name, axes in inputs.axes.items()
        for dim, axis in axes.items()
    }


def _limits(program: ExportedProgram, symbols: dict[str, str]) -> dict[str, tuple[int, int]]:
    ranges = {str(symbol): found for symbol, found in program.range_constraints.items()}
    limits = {}
    for symbol, axis in symbols.items():
        found = ranges.get(symbol)
        bounded = found is not None and found.upper < _UNBOUNDED
        limits[axis] = (1, int(found.upper) if found is not None and bounded else _UNBOUNDED)
    return limits


def _output_names(program: ExportedProgram) -> tuple[str, ...]:
    """Keys of a transformers output, positions of a tuple, ``output`` for a lone tensor."""
    specs = [s for s in program.graph_signature.output_specs if s.kind is OutputKind.USER_OUTPUT]
    tree = pytree.tree_unflatten(list(range(len(specs))), program.call_spec.out_spec)
    paths, _ = pytree.tree_flatten_with_path(tree)
    names = [".".join(str(key).strip(".[]'\"") for key in path) for path, _ in paths]
    return tuple(
        (f"output_{name}" if name.isdigit() else name) or "output"
        for name, spec in zip(names, specs, strict=True)
        if isinstance(spec.arg, TensorArgument)
    )
