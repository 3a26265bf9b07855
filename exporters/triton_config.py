"""What a Triton Inference Server must know of an exported file: names, types, shapes, batching, engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import onnx
from onnx import TensorProto as T

from exporters.axes import BATCH
from exporters.errors import ExportError
from exporters.pbtxt import Word, entries
from exporters.triton_warmup import NOTHING_KNOWN, Axes, requests

Engine = Literal["cpu", "cuda", "tensorrt"]
LABELS = "labels.txt"

_TYPES = {
    T.FLOAT: "FP32", T.FLOAT16: "FP16", T.BFLOAT16: "BF16", T.DOUBLE: "FP64", T.BOOL: "BOOL",
    T.INT8: "INT8", T.INT16: "INT16", T.INT32: "INT32", T.INT64: "INT64", T.UINT8: "UINT8",
}  # fmt: skip
_WORKSPACE = 1 << 30


@dataclass(frozen=True)
class Batching:
    """How requests are put together.

    Attributes:
        limit: Largest batch; 0 where the file fixes its batch.
        preferred: Sizes that are run as soon as they are there.
        delay_us: How long a request may wait for others, in microseconds.
    """

    limit: int = 16
    preferred: tuple[int, ...] = ()
    delay_us: int = 500


@dataclass(frozen=True)
class Value:
    """An input or output.

    Attributes:
        name, type: In Triton's words.
        shape: A dynamic dimension is the name of its axis, empty if it has none.
        batched: Whether the first dimension is the batch, of which Triton keeps count by itself.
    """

    name: str
    type: str
    shape: tuple[int | str, ...]
    batched: bool

    @property
    def dims(self) -> list[int]:
        """As Triton counts: without the batch, -1 for what is dynamic."""
        return [-1 if isinstance(size, str) else size for size in self._counted]

    def sized(self, lengths: Mapping[str, int], other: int) -> list[int]:
        """The dimensions with the length of each dynamic axis, ``other`` where it is not given."""
        return [
            lengths.get(size, other) if isinstance(size, str) else size for size in self._counted
        ]

    @property
    def _counted(self) -> tuple[int | str, ...]:
        return self.shape[1:] if self.batched else self.shape


def values(graph: onnx.GraphProto) -> tuple[list[Value], list[Value]]:
    """Inputs and outputs of a graph."""
    initial = {tensor.name for tensor in graph.initializer}
    inputs = [_value(v) for v in graph.input if v.name not in initial]
    return inputs, [_value(v) for v in graph.output]


def config(
    name: str,
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    engine: Engine,
    batching: Batching,
    *,
    instances: int = 1,
    threads: int | None = None,
    precision: str = "fp32",
    labels: bool = False,
    profiles: Mapping[str, str] | None = None,
    axes: Axes = NOTHING_KNOWN,
) -> dict[str, Any]:
    """The fields of Triton's ``ModelConfig``, to be rendered as protobuf text.

    ``profiles`` are TensorRT's, where the file tells them; else they follow the batch. ``axes`` are the sizes that
    the file holds for.
    """
    batched = all(value.batched for value in (*inputs, *outputs))
    limit = batching.limit if batched else 0
    # Triton takes the batch off all dimensions or off none.
    inputs, outputs = ([replace(v, batched=batched) for v in side] for side in (inputs, outputs))
    return {
        "name": name,
        "backend": "onnxruntime",
        "max_batch_size": limit,
        "input": [_tensor(value) for value in inputs],
        "output": [
            _tensor(value) | {"label_filename": LABELS if labels and i == 0 else None}
            for i, value in enumerate(outputs)
        ],
        "dynamic_batching": _dynamic(batching) if limit else None,
        "instance_group": {
            "count": instances,
            "kind": Word("KIND_CPU" if engine == "cpu" else "KIND_GPU"),
        },
        "version_policy": {"latest": {"num_versions": 1}},
        "optimization": _optimization(engine, inputs, limit, precision, profiles),
        "parameters": _parameters(engine, threads),
        # What the smallest and the largest batch allocate, no first request has to wait for.
        "model_warmup": list(requests(inputs, dict.fromkeys((1, limit)) if limit else (0,), axes)),
    }


def _value(value: onnx.ValueInfoProto) -> Value:
    kind = value.type.tensor_type
    if kind.elem_type not in _TYPES:
        word = T.DataType.Name(kind.elem_type)
        raise ExportError("Triton has no word for this type", where=value.name, why=f"it is {word}")
    shape = tuple(
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in kind.shape.dim
    )
    batched = shape[:1] == (BATCH,)
    return Value(value.name, f"TYPE_{_TYPES[kind.elem_type]}", shape, batched)


def _tensor(value: Value) -> dict[str, Any]:
    # A scalar has one element and no dimension; Triton wants at least one.
    return {
        "name": value.name,
        "data_type": Word(value.type),
        "dims": value.dims or [1],
        "reshape": None if value.dims else {"shape": []},
    }


def _dynamic(batching: Batching) -> dict[str, Any]:
    return {
        "preferred_batch_size": list(batching.preferred),
        "max_queue_delay_microseconds": batching.delay_us,
    }


def _optimization(
    engine: Engine,
    inputs: Sequence[Value],
    limit: int,
    precision: str,
    profiles: Mapping[str, str] | None,
) -> dict[str, Any] | None:
    if engine != "tensorrt":
        return None
    settings = {
        "precision_mode": "FP16" if precision == "fp16" else "FP32",
        "max_workspace_size_bytes": str(_WORKSPACE),
        "trt_engine_cache_enable": "1",
        **(profiles or _profiles(inputs, limit)),
    }
    accelerator = {"name": "tensorrt", "parameters": entries(settings)}
    return {"execution_accelerators": {"gpu_execution_accelerator": accelerator}}


def _profiles(inputs: Sequence[Value], limit: int) -> dict[str, str]:
    """Without profiles TensorRT builds a new engine for each new size; lengths it cannot know."""
    if not limit or any(-1 in value.dims for value in inputs):
        return {}

    def shapes(batch: int) -> str:
        return ",".join(f"{v.name}:{'x'.join(map(str, (batch, *v.dims)))}" for v in inputs)

    sizes = {"min": 1, "opt": max(1, limit // 2), "max": limit}
    return {f"trt_profile_{word}_shapes": shapes(size) for word, size in sizes.items()}


def _parameters(engine: Engine, threads: int | None) -> list[Any]:
    if engine != "cpu" or threads is None:
        return []
    return entries({"intra_op_thread_count": {"string_value": str(threads)}})
