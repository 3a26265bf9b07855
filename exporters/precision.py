"""From fp32 to fewer bits: what changes in the file, and how much error each precision may bring."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx
import onnx_ir as ir

from exporters.causal import PAST, PRESENT
from exporters.counts import angle_products, drop_detours, keep_exact
from exporters.errors import ExportError

Precision = Literal["fp32", "fp16", "int8"]


@dataclass(frozen=True)
class Tolerance:
    """What verification lets pass.

    Attributes:
        error: Largest max|difference| / max|reference| of an output.
        agreement: Least share of top-1 predictions that must agree; less than all, because ties
            may fall either way.
    """

    error: float
    agreement: float


TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": Tolerance(1e-5, 0.99),
    "fp16": Tolerance(5e-3, 0.98),
    # Activations get 8 bits for their whole range: one outlier costs all others. The error bound
    # only finds what is broken; what the file is worth, the predictions on real samples tell.
    "int8": Tolerance(0.25, 0.95),
}

_PRODUCTS = ("MatMul", "Gemm")
_CACHE = tuple(name.partition("{")[0] for name in (PAST, PRESENT))


def lower(model: ir.Model, precision: Precision) -> tuple[ir.Model, tuple[str, ...]]:
    """Return the model in ``precision``, with fp32 inputs and outputs, and what to know about it.

    Under fp16 the cache of a decoder has 16 bits too: it is the model's own state, and would be cast twice a token.

    Args:
        model: In fp32.
        precision: ``fp16`` rounds every weight and computes in half precision where the engine can, but for
            counts and angles. ``int8`` quantises the weights of matrix products, output channel by output
            channel, and their other operand anew at each call; everything else stays fp32, and so do products
            of positions and frequencies.

    Raises:
        ExportError: If there is nothing to quantise, or the conversion fails.
    """
    if precision == "fp32":
        return model, ()
    halved = precision == "fp16"
    exact = keep_exact(model) if halved else angle_products(model)
    proto = ir.to_proto(model)
    # What shape inference left there describes the fp32 graph.
    del proto.graph.value_info[:]
    with _quiet():
        try:
            return _halved(proto, exact) if halved else _quantised(proto, exact)
        except ExportError:
            raise
        except Exception as error:  # the converters raise whatever they stumble over
            raise ExportError(
                f"the graph could not be converted to {precision}",
                why=f"{type(error).__name__}: {error}",
                remedy="export with precision='fp32'",
            ) from error


def _halved(proto: onnx.ModelProto, exact: list[str]) -> tuple[ir.Model, tuple[str, ...]]:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    # Local functions and inferred shapes would only be in the way: the graph is flat and typed.
    values = [value.name for value in (*proto.graph.input, *proto.graph.output)]
    kept = [name for name in values if not name.startswith(_CACHE)]
    converted = convert_float_to_float16(
        proto, keep_io_types=kept, force_fp16_initializers=True, node_block_list=exact
    )
    del converted.graph.value_info[:]
    model = ir.from_proto(converted)
    # The converter appends the casts of inputs and outputs at the end.
    model.graph.sort()
    drop_detours(model)
    cached = ", the cache in fp16" if len(kept) < len(values) else ""
    return model, (f"weights and computation in fp16, inputs and outputs in fp32{cached}",)


def _quantised(proto: onnx.ModelProto, exact: list[str]) -> tuple[ir.Model, tuple[str, ...]]:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    before = sum(node.op_type in _PRODUCTS for node in proto.graph.node)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        quantize_dynamic(
            proto,
            path,
            op_types_to_quantize=list(_PRODUCTS),
            nodes_to_exclude=exact,
            per_channel=True,
            # Without VNNI, products of full 8-bit pairs overflow: a file must not depend on that.
            reduce_range=True,
            weight_type=QuantType.QInt8,
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )
        model = ir.from_proto(onnx.load(path))
    count = sum(node.op_type == "MatMulInteger" for node in model.graph)
    if not count:
        raise ExportError(
            "there is nothing to quantise",
            why="int8 covers products with a constant matrix, and the graph has none",
            remedy="export with precision='fp32'",
        )
    return model, (f"{count} of {before} matrix products run in int8, all else in fp32",)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The converters warn of what is done on purpose: skipped optimisation, clipped numbers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
