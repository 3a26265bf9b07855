"""torch.export of a model as it is to be called: constants bound, numbers left out, attention over four dimensions."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from inspect import Parameter
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from exporters.edits import know_readers
from exporters.every_row import EveryRow
from exporters.inputs import Inputs, identifier
from exporters.lengths import open_lengths
from exporters.whole_numbers import fold_whole_numbers
from surgery.anatomy.capture import Values, capture
from surgery.anatomy.graph import is_open
from surgery.errors import CaptureError

_NO_TENSORS = (int, float, str, torch.SymInt, torch.SymFloat)


@dataclass(frozen=True)
class Traced:
    """A program and what it was traced with.

    Attributes:
        program: With the model's own operators.
        inputs: What it takes; whole numbers that the graph follows from are constants.
        left_out: Outputs that are numbers or texts, and that it does not return.
    """

    program: ExportedProgram
    inputs: Inputs
    left_out: frozenset[str]


def trace(model: nn.Module, inputs: Inputs) -> Traced:
    """The graph for any values; where it asks for some, that for the whole numbers which tell the layout.

    Raises:
        CaptureError: If there is neither; it tells what stopped the first.
    """
    ways = [
        partial(_trace, model, inputs, "any"),
        *(partial(_settle, model, s) for s in inputs.settled()),
    ]
    found: Traced | None = None
    stopped: CaptureError | None = None
    for way in ways:
        try:
            traced = way()
        except CaptureError as error:
            stopped = stopped or error
            continue
        if not _asks(traced.program):
            return traced
        found = found or traced
    if found is not None:
        return found  # ONNX has operators for much that follows from values
    assert stopped is not None
    raise _about_export(stopped, inputs) from stopped


def _about_export(error: CaptureError, inputs: Inputs) -> CaptureError:
    """The same with what helps here: there may be a graph for one set of sizes where there is none for all."""
    fixed = ", or dynamic=False: there may be a graph for these shapes alone"
    remedy = f"pass example_inputs= that the model accepts{fixed if inputs.sizes else ''}"
    return CaptureError(error.what, where=error.where, why=error.why, remedy=remedy)


def _asks(program: ExportedProgram) -> bool:
    """Whether a number in the graph follows from the values of a tensor."""
    for node in program.graph.nodes:
        value = node.meta.get("val")
        numbers = value.shape if isinstance(value, Tensor) else (value,)
        if any(map(is_open, numbers)):
            return True
    return False


def _settle(model: nn.Module, inputs: Inputs) -> Traced:
    traced = _trace(model, inputs, "constants")
    fold_whole_numbers(traced.program)
    return traced


def _trace(model: nn.Module, inputs: Inputs, values: Values) -> Traced:
    # AUTO keeps a dimension dynamic as far as the model's own guards allow. Named dimensions would
    # fail on each guard that narrows them, and two inputs with one batch need no common symbol.
    dims = {
        identifier(name): dict.fromkeys(inputs.axes.get(name, ()), Dim.AUTO)
        for name in inputs.tensors
    }
    # With gradients on, SDPA with a mask decomposes to strides that a dynamic batch cannot view.
    rows = EveryRow()
    with torch.no_grad(), _FourDimensions(), rows, _bound(model, inputs) as bound:
        # torch marks the very tensors that it traces with as dynamic: theirs are not ours to mark.
        given = {
            name: value.detach() if isinstance(value, Tensor) else value
            for name, value in inputs.kwargs.items()
            if name not in bound
        }
        shapes = {name: dims.get(name) for name in given}
        wanted, tensors = shapes if inputs.sizes else None, _Tensors()
        with model.register_forward_hook(tensors), open_lengths(model):
            program = capture(model, (), given, dynamic_shapes=wanted, values=values)
    know_readers(program.graph)
    notes = (*inputs.notes, rows.note) if rows.note else inputs.notes
    return Traced(program, replace(inputs, notes=notes), frozenset(tensors.left_out))


def spelled(path: Sequence[Any]) -> str:
    """The name of an output: keys of a transformers output, positions of a tuple, ``output`` for a lone one."""
    name = ".".join(str(key).strip(".[]'\"") for key in path)
    return (f"output_{name}" if name.isdigit() else name) or "output"


@contextmanager
def _bound(model: nn.Module, inputs: Inputs) -> Iterator[set[str]]:
    """Give the model constants that are no arguments of torch.export, and every input a name of its own.

    Such constants are tensors, and what only ``**kwargs`` takes. Inputs that only ``**kwargs`` takes have
    no dynamic shapes in torch 2.11, and conditions on their shapes that torch 2.15 cannot evaluate.
    """
    forward, parameters = model.forward, inspect.signature(model.forward).parameters
    constants, tensors = inputs.constants, map(identifier, inputs.tensors)
    rest = {n: v for n, v in constants.items() if n not in parameters or isinstance(v, Tensor)}
    named = [Parameter(n, Parameter.KEYWORD_ONLY) for n in tensors if n not in parameters]
    if not (rest or named):
        yield set()
        return

    def call(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs, **{name: _literal(v) for name, v in rest.items()})

    kept = [p for p in parameters.values() if p.kind is not p.VAR_KEYWORD and p.name not in rest]
    vars(call)["__signature__"] = inspect.Signature([*kept, *named])
    before = vars(model).get("forward")
    model.forward = call
    try:
        yield set(rest)
    finally:
        del model.forward
        if before is not None:
            model.forward = before


class _Tensors:
    """A hook that puts None in the place of numbers and texts, and keeps their names: a graph returns tensors."""

    def __init__(self) -> None:
        self.left_out: set[str] = set()

    def __call__(self, model: nn.Module, args: Any, output: Any) -> Any:
        leaves, spec = pytree.tree_flatten_with_path(output)
        self.left_out |= {spelled(path) for path, leaf in leaves if isinstance(leaf, _NO_TENSORS)}
        kept = [None if isinstance(leaf, _NO_TENSORS) else leaf for _, leaf in leaves]
        return pytree.tree_unflatten(kept, spec)


def _literal(value: Any) -> Any:
    """A tensor as a literal of the graph: torch follows the values of those."""
    return torch.tensor(value.tolist(), dtype=value.dtype) if isinstance(value, Tensor) else value


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
