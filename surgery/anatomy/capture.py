"""Capturing a model's graph with torch.export, leaving the model exactly as it was."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr
from itertools import product
from typing import Any, Literal
from unittest import mock

import torch
import torch.fx.config
from torch import nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from surgery.anatomy.buffers import kept_state
from surgery.anatomy.conversions import idle_conversions
from surgery.anatomy.gradients import visible_gradients
from surgery.anatomy.graph import is_open, module_path
from surgery.anatomy.known import has_known_integers, is_whole, known_integers
from surgery.anatomy.regions import inline_gradients
from surgery.anatomy.valued import has_real_values, real_values, settle_sizes
from surgery.errors import CaptureError, told_by

Values = Literal["any", "constants", "integers", "all"]
"""For which values a captured graph holds: any; any inputs beside these buffers; these integer inputs; this call."""

_ALONE = threading.RLock()
"""torch.export sets state of the whole process: two threads in it break each other."""
_KNOWN = (torch.Tensor, int, float, bool, str, type(None))
_IN_PLACE = ("copy_.default", "index_put_.default", "fill_.Scalar", "fill_.Tensor", "scatter_.src")


def capture(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    values: Values = "any",
    gradients: bool = False,
) -> ExportedProgram:
    """Export ``model`` on fake tensors, in eval mode.

    The model's mode, weights, buffers, attributes, random state and grad flags are afterwards what they were.

    Args:
        model: Any ``nn.Module``; on the meta device no weight is needed.
        args: Positional example inputs.
        kwargs: Example inputs by name.
        dynamic_shapes: As for ``torch.export.export``; None fixes every shape.
        values: Whether integer buffers and literals, integer inputs too, or all values may become constants
            of the graph, which is then right for these alone.
        gradients: Whether the graph tells where gradients end: at ``detach``, which then also follows what the
            model computes under ``torch.no_grad``.

    Raises:
        CaptureError: If the graph cannot be captured; it quotes the model line that stopped it.
    """
    kwargs = dict(kwargs or {})
    with (
        alone(),
        unchanged(model),
        _silence(),
        idle_conversions(),
        visible_gradients() if gradients else torch.no_grad(),
    ):
        try:
            with _knowing(values, model, args, kwargs):
                program = torch.export.export(
                    model, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False
                )
            if gradients:
                inline_gradients(program)
            if _writes_in_place(program):
                program = _functional(program, values)
            if values == "all":
                settle_sizes(program)
            return program
        except Exception as error:
            raise CaptureError(
                f"torch.export could not capture the graph of {type(model).__name__}",
                where=_model_line(error),
                why=told_by(error),
                remedy="pass example_inputs= that the model accepts, or write a policy that names "
                "modules (select: [{modules: [...]}]), which needs no graph",
            ) from error


def capture_for_reading(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[ExportedProgram, Values]:
    """The graph that holds for the most values, and for which: any, else these integers, else these inputs.

    Raises:
        CaptureError: If none can be captured; it tells what stopped the first.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise CaptureError(
            f"{type(model).__name__} is TorchScript",
            why="torch.export follows Python code, and a scripted or traced model has none left",
            remedy="read the model that torch.jit.script or torch.jit.trace was given",
        )
    ways: list[Values] = ["any"]
    ways += ["integers"] if has_known_integers(model, args, kwargs) else []
    ways += ["all"] if has_real_values(model, args, kwargs) else []
    stopped: CaptureError | None = None
    with model.register_forward_hook(_tensors_only):
        # A model that runs without gradients alone (it writes into its weights) still has an anatomy.
        for gradients, values in product((True, False), ways):
            try:
                program = capture(model, args, kwargs, values=values, gradients=gradients)
                refuse_open_shapes(program, model)
                return program, values
            except CaptureError as error:
                stopped = stopped or error
    assert stopped is not None
    raise stopped


def _knowing(
    values: Values, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> AbstractContextManager[None]:
    if values == "constants":
        return known_integers(model, (), {})
    if values == "integers":
        return known_integers(model, args, kwargs)
    return real_values() if values == "all" else nullcontext()


def _functional(program: ExportedProgram, values: Values) -> ExportedProgram:
    """Without writes in place, where that can be; a write that is not seen leaves a role unresolved, which is told."""
    try:
        made: ExportedProgram = program.run_decompositions({})
        return made
    except Exception:
        if values == "any":
            raise
        return program  # what held for known values alone may not be traced again without them


def _tensors_only(model: nn.Module, args: Any, output: Any) -> Any:
    """Of an output with objects that torch.export does not know (a cache), the tensors."""
    leaves = pytree.tree_leaves(output)
    known = all(isinstance(leaf, _KNOWN) for leaf in leaves)
    return output if known else [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def refuse_open_shapes(program: ExportedProgram, model: nn.Module) -> None:
    """Raise where the size of a tensor follows from the values of others: such a graph has no shapes to read.

    Raises:
        CaptureError: With the operator that makes the first such tensor.
    """
    for node in program.graph.nodes:
        value = node.meta.get("val")
        sizes = value.shape if isinstance(value, torch.Tensor) else ()
        if any(map(is_open, sizes)):
            raise CaptureError(
                f"the graph of {type(model).__name__} has tensors whose size depends on values",
                where=module_path(node) or node.name,
                why=f"{node.target} makes a tensor of shape {tuple(sizes)}",
                remedy="write a policy that names modules (select: [{modules: [...]}]), which needs "
                "no graph, or read a part of the model",
            )


@contextmanager
def alone() -> Iterator[None]:
    """One thread at a time in torch.export, which looks for the line of the model behind no node.

    It would spend a fifth of a capture on these lines; a module's path says where a node comes from.
    """
    config, switch = torch.fx.config, "do_not_emit_stack_traces"
    known = hasattr(config, switch)  # torch 2.11 always looks
    with _ALONE, mock.patch.object(config, switch, True) if known else nullcontext():
        yield


@contextmanager
def _silence() -> Iterator[None]:
    """torch.export warns much, and prints the whole graph to stderr where it stops."""
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


@contextmanager
def without_fast_path() -> Iterator[None]:
    """Inside, encoders and attentions of torch.nn run operator by operator, and not as one opaque operator."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; on leaving, modes, attributes, buffers and the random state are what they were."""
    modes = [(module, module.training) for module in model.modules()]
    random_state = torch.get_rng_state()
    for module, _ in modes:
        module.training = False  # train() and eval() may be the model's own, and change weights
    try:
        with kept_state(model), without_fast_path():
            yield
    finally:
        torch.set_rng_state(random_state)
        for module, mode in modes:
            module.training = mode


def _writes_in_place(program: ExportedProgram) -> bool:
    """Whether a value is changed behind the graph's back: written through a view that nobody reads.

    Such a graph is made functional first (empty decompositions keep every operator), so that
    data flow is what the edges say. No projection flows through integers: positions may be written as they are.
    """
    return any(
        node.op == "call_function"
        and not node.users
        and str(node.target).endswith(_IN_PLACE)
        and not is_whole(node.meta.get("val"))
        for node in program.graph.nodes
    )


def _model_line(error: Exception) -> str | None:
    """The innermost line that is neither torch's nor ours: where the model's own code stopped."""
    frame, found = error.__traceback__, None
    while frame is not None:
        module = frame.tb_frame.f_globals.get("__name__", "")
        if module.partition(".")[0] not in {"torch", "surgery", "exporters", "contextlib"}:
            found = f"{module}, line {frame.tb_lineno}, in {frame.tb_frame.f_code.co_name}"
        frame = frame.tb_next
    return found
