"""One matrix product for query, key and value, or three: what ONNX Runtime makes of each on a CPU.

``python -m benchmarks.packing`` takes turns between the ways, one thread, and keeps
``benchmarks/results/packing.json``: medians of the processor time of four attention layers, relative to
three products.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from benchmarks.record import keep
from exporters.precision import lower

LAYERS = 4
THREE = "three products"
SPLIT = "one product and a split"
TAKEN = "one product, taken by the operator"


@dataclass(frozen=True)
class Shape:
    """Sizes of one attention; with ``past`` there is a cache, and the operator is GroupQueryAttention."""

    width: int
    heads: int
    key_heads: int
    batch: int
    length: int
    past: int | None = None

    @property
    def sizes(self) -> list[int]:
        """Channels of query, key and value."""
        keys = self.width // self.heads * self.key_heads
        return [self.width, keys, keys]


SHAPES = {
    f"{name}, batch {batch}": Shape(width, 12, 12, batch, 128)
    for name, width in (("MiniLM", 384), ("BERT-base", 768))
    for batch in (1, 8)
} | {
    f"decoder {width}, batch {batch}, {length} new tokens": Shape(
        width, width // 64, width // 256, batch, length, 128 - length
    )
    for width in (512, 1024, 2048)
    for batch, length in ((1, 1), (8, 1), (1, 128))
}


class _Layers:
    """Builds a graph layer by layer."""

    def __init__(self, shape: Shape, way: str) -> None:
        self.shape, self.way = shape, way
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, value: np.ndarray[Any, Any]) -> str:
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def call(self, kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        own = kind in {"MatMul", "Split"}
        domain = "" if own else "com.microsoft"
        self.nodes.append(helper.make_node(kind, inputs, outputs, domain=domain, **attributes))

    def operands(self, x: str, weight: np.ndarray[Any, Any], layer: int) -> list[str]:
        names = [f"{role}{layer}" for role in "qkv"]
        if self.way == THREE:
            ends = np.cumsum(self.shape.sizes)[:-1]
            for name, part in zip(names, np.split(weight, ends, 1), strict=True):
                held = self.constant(f"w{name}", np.ascontiguousarray(part))
                self.call("MatMul", [x, held], [name])
            return names
        self.call("MatMul", [x, self.constant(f"w{layer}", weight)], [f"qkv{layer}"])
        if self.way == TAKEN:
            return [f"qkv{layer}", "", ""]
        sizes = self.constant(f"sizes{layer}", np.array(self.shape.sizes))
        self.call("Split", [f"qkv{layer}", sizes], names, axis=-1)
        return names

    def attention(self, x: str, weight: np.ndarray[Any, Any], layer: int) -> str:
        result, heads = f"x{layer + 1}", {"num_heads": self.shape.heads}
        if self.shape.past is not None:
            inputs = [*self.operands(x, weight, layer), "past_key", "past_value", "last", "total"]
            outputs = [result, f"key{layer}", f"value{layer}"]
            groups = {"kv_num_heads": self.shape.key_heads}
            self.call("GroupQueryAttention", inputs, outputs, **heads, **groups)
        elif self.way == TAKEN:
            held = [self.constant(f"w{layer}", weight)]
            zero = self.constant(f"b{layer}", np.zeros(weight.shape[1], np.float32))
            self.call("Attention", [x, *held, zero], [result], **heads)
        else:
            self.call("MultiHeadAttention", self.operands(x, weight, layer), [result], **heads)
        return result


def build(shape: Shape, way: str, feeds: Mapping[str, np.ndarray[Any, Any]]) -> onnx.ModelProto:
    """Four layers, always with the same weights."""
    generator, layers, x = np.random.default_rng(0), _Layers(shape, way), "x"
    for layer in range(LAYERS):
        drawn = generator.standard_normal((shape.width, sum(shape.sizes))) / shape.width**0.5
        x = layers.attention(x, drawn.astype(np.float32), layer)
    kinds = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int32): TensorProto.INT32}
    given = [
        helper.make_tensor_value_info(n, kinds[v.dtype], list(v.shape)) for n, v in feeds.items()
    ]
    result = helper.make_tensor_value_info(x, TensorProto.FLOAT, feeds["x"].shape)
    graph = helper.make_graph(layers.nodes, "layers", given, [result], layers.constants)
    versions = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=versions, ir_version=10)


def feeds_of(shape: Shape) -> dict[str, np.ndarray[Any, Any]]:
    """Random activations, and a cache if there is one."""
    generator = np.random.default_rng(1)

    def draw(*sizes: int) -> np.ndarray[Any, Any]:
        return generator.standard_normal(sizes).astype(np.float32)

    found = {"x": draw(shape.batch, shape.length, shape.width)}
    if shape.past is None:
        return found
    total = shape.past + shape.length
    past = (shape.batch, shape.key_heads, shape.past, shape.width // shape.heads)
    last = np.full(shape.batch, total - 1, np.int32)
    return found | {
        "past_key": draw(*past), "past_value": draw(*past), "last": last,
        "total": np.array(total, np.int32),
    }  # fmt: skip


def measure(shape: Shape, precision: str) -> dict[str, float]:
    """Median processor time of each way, relative to three products."""
    feeds = feeds_of(shape)
    ways = [THREE, SPLIT, TAKEN]
    if precision == "int8" and shape.past is None:
        ways.remove(TAKEN)  # the product inside Attention stays fp32
    sessions = {way: _session(build(shape, way, feeds), precision) for way in ways}
    found = {way: session.run(None, feeds)[0] for way, session in sessions.items()}
    for way in ways:
        np.testing.assert_allclose(found[way], found[THREE], atol=1e-4 * np.abs(found[THREE]).max())
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(max(8, 2000 // (shape.batch * shape.length * shape.width // 128))):
        for way, session in sessions.items():
            started = time.thread_time()
            session.run(None, feeds)
            times[way].append(time.thread_time() - started)
    base = statistics.median(times[THREE])
    return {way: round(statistics.median(taken) / base, 3) for way, taken in times.items()}


def _session(model: onnx.ModelProto, precision: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    lowered, _ = lower(ir.from_proto(model), "int8" if precision == "int8" else "fp32")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layers.onnx"
        ir.save(lowered, path)
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def main() -> None:
    """Measure every shape in fp32 and int8, print, keep."""
    figures: dict[str, dict[str, float]] = {}
    for name, shape in SHAPES.items():
        for precision in ("fp32", "int8"):
            key = f"{name}, {precision}"
            figures[key] = measure(shape, precision)
            print(key, figures[key], flush=True)
            keep("packing", figures)


if __name__ == "__main__":
    main()
