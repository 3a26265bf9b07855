"""From a plain model to an exported program with named inputs, outputs and dynamic axes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import OutputKind, TensorArgument
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from exporters.errors import ExportError
from exporters.inputs import BATCH, Inputs, identifier
from surgery.anatomy.capture import capture as capture_graph

_UNBOUNDED = 2**31


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
    # AUTO keeps a dimension dynamic as far as the model's own guards allow. Named dimensions would
    # fail on each guard that narrows them, and two inputs with one batch need no common symbol.
    dims = {
        identifier(name): dict.fromkeys(inputs.axes.get(name, ()), Dim.AUTO)
        for name in inputs.tensors
    }
    # With gradients on, SDPA with a mask decomposes to strides that a dynamic batch cannot view.
    with torch.no_grad(), _FourDimensions(), _bound(model, inputs.constants) as bound:
        given = {name: value for name, value in inputs.kwargs.items() if name not in bound}
        shapes = _as_arguments(model, {name: dims.get(name) for name in given})
        program = capture_graph(model, (), given, dynamic_shapes=shapes if inputs.sizes else None)
    symbols, fixed = _symbols(program, inputs)
    if BATCH in fixed:
        raise ExportError(
            f"{type(model).__name__} works at one batch size only",
            why="its graph turns the batch size into a constant",
            remedy="pass example_inputs= of the batch size to serve, and dynamic=False",
        )
    notes = [
        f"{axis} is fixed at {size}: the model allows no other" for axis, size in fixed.items()
    ]
    axes = {
        name: {dim: axis for dim, axis in dims.items() if axis not in fixed}
        for name, dims in inputs.axes.items()
    }
    return Captured(
        program,
        Inputs(inputs.tensors, inputs.constants, axes),
        _output_names(program),
        symbols,
        _limits(program, symbols),
        tuple(notes),
    )


@contextmanager
def _bound(model: nn.Module, constants: Mapping[str, Any]) -> Iterator[set[str]]:
    """Give the model those constants that only its ``**kwargs`` takes: torch 2.11 has no dynamic shapes for these."""
    known = inspect.signature(model.forward).parameters
    rest = {name: value for name, value in constants.items() if name not in known}
    before = vars(model).get("forward")
    try:
        if rest:
            model.forward = partial(model.forward, **rest)
        yield set(rest)
    finally:
        if rest:
            del model.forward
        if rest and before is not None:
            model.forward = before


def _as_arguments(model: nn.Module, shapes: dict[str, Any]) -> dict[str, Any]:
    """Shapes by argument; what only ``**kwargs`` takes belongs under its name, which torch 2.11 insists on."""
    parameters = inspect.signature(model.forward).parameters
    rest = next((p.name for p in parameters.values() if p.kind is p.VAR_KEYWORD), None)
    others = {name: shape for name, shape in shapes.items() if name not in parameters}
    if rest is None or not others:
        return shapes
    return {**{name: shapes[name] for name in shapes if name in parameters}, rest: others}


class _FourDimensions(TorchFunctionMode):
    """torch's exporter translates attention over four dimensions only; more belong to the batch."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        attend: Any = func
        if func is not F.scaled_dot_product_attention or len(args) < 3 or args[0].ndim == 4:
            return func(*args, **kwargs)
        query, key, value, *rest = args
        mask = rest.pop(0) if rest else kwargs.pop("attn_mask", None)
        if query.ndim == 3:
            operands = [x.unsqueeze(1) for x in (query, key, value)]
            mask = mask.unsqueeze(1) if mask is not None and mask.ndim == 3 else mask
            return attend(*operands, mask, *rest, **kwargs).squeeze(1)
        batch = query.shape[:-3]
        if mask is not None and mask.ndim > 3:
            mask = mask.expand(*batch, *mask.shape[-3:]).flatten(0, -4)
        operands = [x.flatten(0, -4) for x in (query, key, value)]
        found = attend(*operands, mask, *rest, **kwargs)
        return found.reshape(*batch, *found.shape[-3:])


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


def _limits(program: ExportedProgram, symbols: dict[str, str]) -> dict[str, tuple[int, int]]:
    """Smallest and largest size of each axis; several inputs share an axis, the narrowest counts."""
    limits = dict.fromkeys(symbols.values(), (1, _UNBOUNDED))
    for symbol, found in program.range_constraints.items():
        axis = symbols.get(str(symbol))
        if axis is not None and found.upper < limits[axis][1]:
            limits[axis] = (1, int(found.upper))
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
