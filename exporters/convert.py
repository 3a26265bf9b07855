"""From an exported program to an ONNX file: translation, clean-up, saving."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from torch._subclasses import FakeTensor
from torch.export import ExportedProgram

from exporters.capture import Captured
from exporters.edits import placeholders
from exporters.errors import ExportError
from exporters.experts import hold_products, spell_out_products
from exporters.inputs import identifier
from exporters.neutral import only_neutral_is_dropped
from exporters.norms import divide_by_roots
from exporters.patterns.unseen import zeros_where_nothing_is_seen
from exporters.siblings import only_siblings_are_paired
from exporters.translations import TRANSLATIONS
from surgery.anatomy.capture import alone
from surgery.errors import told_by

OPSET = 20
"""Opset 23 turns SDPA into ai.onnx::Attention, but breaks rotary embeddings at batch > 1."""

LARGEST_FILE = 1_800_000_000
"""Bytes of weights beyond which they go to a file of their own: protobuf ends at 2 GB."""


def to_ir(captured: Captured) -> ir.Model:
    """Translate a program to ONNX.

    Raises:
        ExportError: If an operator cannot be translated.
    """
    hold_products(captured.program)
    _forget_pending(captured.program)
    with (
        alone(),
        _quiet(),
        torch.no_grad(),
        zeros_where_nothing_is_seen(captured),
        only_neutral_is_dropped(),
        only_siblings_are_paired(),
    ):
        try:
            translated = torch.onnx.export(
                captured.program,
                dynamo=True,
                opset_version=OPSET,
                output_names=list(captured.outputs),
                custom_translation_table=TRANSLATIONS,
                verbose=False,
            )
        except Exception as error:
            raise ExportError(
                "the graph could not be translated to ONNX",
                why=told_by(_innermost(error)),
                remedy="an operator may be missing in torch's exporter; try a newer torch",
            ) from error
    assert translated is not None
    translated.rename_axes(dict(captured.symbols))
    _close_fixed(translated.model.graph)
    _name_inputs(translated.model.graph, captured)
    _adopt_constants(translated.model.graph)
    divide_by_roots(translated.model)
    spell_out_products(translated.model)
    clean(translated.model)
    return translated.model


def _close_fixed(graph: ir.Graph) -> None:
    """A dimension that the graph turned into a number is a symbol in torch's words, "12": any size would fit it."""
    values = (
        value for node in ir.traversal.RecursiveGraphIterator(graph) for value in node.outputs
    )
    for value in (*graph.inputs, *values):
        for dim, size in enumerate(value.shape or ()):
            if isinstance(size, ir.SymbolicDim) and str(size.value).isdecimal():
                value.shape[dim] = int(str(size.value))


def _name_inputs(graph: ir.Graph, captured: Captured) -> None:
    """As the model calls them. One that is returned as it is has another name by now, so their order counts."""
    names = {identifier(name): name for name in captured.inputs.tensors}
    order = [names[node] for node in placeholders(captured.program) if node in names]
    for value, name in zip(graph.inputs, order, strict=True):
        value.name = name


def _forget_pending(program: ExportedProgram) -> None:
    """What an earlier translation leaves of sizes that follow from values, torch would ask of the next one."""
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, FakeTensor) and value.fake_mode.shape_env is not None:
            value.fake_mode.shape_env.pending_fresh_unbacked_symbols.clear()


def _adopt_constants(graph: ir.Graph) -> None:
    """Where onnxscript joins two pairs of Clips of one name, it forgets to put the second's bounds into the graph."""
    for node in graph:
        for value in node.inputs:
            if value is None or value.const_value is None or value.producer() is not None:
                continue
            if not (value.is_initializer() or value.is_graph_input()):
                graph.register_initializer(value)


def clean(model: ir.Model) -> None:
    """Drop what the exporter left for debugging: stack traces, local paths, module scopes."""
    for graph in (model.graph, *model.functions.values()):
        graph.metadata_props.clear()
        graph.doc_string = None
        for node in ir.traversal.RecursiveGraphIterator(graph):
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


def save(model: ir.Model, path: Path) -> None:
    """Write one self-contained file, or a file and its ``.data`` where the weights pass 2 GB."""
    model.producer_name = "model-surgery"
    weights = [
        v.const_value for v in model.graph.initializers.values() if v.const_value is not None
    ]
    large = sum(weight.nbytes for weight in weights) > LARGEST_FILE
    ir.save(model, path, external_data=f"{path.name}.data" if large else None)


def describe(path: Path, metadata: Mapping[str, str]) -> None:
    """Add metadata to a file, whose weights are not written again: protobuf merges what follows a message."""
    entries = onnx.ModelProto()
    onnx.helper.set_model_props(entries, dict(metadata))
    with path.open("ab") as file:
        file.write(entries.SerializeToString())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints progress, logs missing torchvision operators and what it does not fold."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _innermost(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
