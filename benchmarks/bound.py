"""Sessions of ONNX Runtime whose inputs and outputs stay in torch's tensors, on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import torch
from torch import Tensor

from exporters.providers import CPU, CUDA
from exporters.runtime import SessionOptions, available, recommended_options

_DTYPES = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16}


class Bound:
    """A file opened at its best, bound to tensors of one size.

    Args:
        path: The file.
        inputs: By name, on the device. Floating point ones become what the file takes.
        shapes: Of the outputs, in order.
        graph: Whether the provider records a CUDA graph and replays it; every size is then fixed.

    Raises:
        RuntimeError: If a graph is asked for where the provider cannot record one.
    """

    def __init__(
        self,
        path: Path,
        inputs: Mapping[str, Tensor],
        shapes: Sequence[torch.Size],
        *,
        graph: bool = False,
    ) -> None:
        self._session = _open(path, inputs, graph)
        self._binding = self._session.io_binding()
        device = next(iter(inputs.values())).device
        taken = self._session.get_inputs()
        self._inputs = {i.name: _as(inputs[i.name], i.type) for i in taken}
        given = zip(self._session.get_outputs(), shapes, strict=True)
        self.outputs = {
            o.name: torch.empty(shape, dtype=_DTYPES[o.type], device=device) for o, shape in given
        }
        for name, tensor in self._inputs.items():
            self._binding.bind_input(name, *_place(tensor))
        for name, tensor in self.outputs.items():
            self._binding.bind_output(name, *_place(tensor))

    def __call__(self) -> Tensor:
        """Run once; the first output, which the next call overwrites."""
        self._session.run_with_iobinding(self._binding)
        return next(iter(self.outputs.values()))


def best_options(path: Path) -> SessionOptions:
    """What a file recommends, or CUDA if it recommends nothing, as far as it is here."""
    found = recommended_options(path)
    return available(SessionOptions((CUDA, CPU)) if found == SessionOptions() else found)


def _open(path: Path, inputs: Mapping[str, Tensor], graph: bool) -> ort.InferenceSession:
    options = best_options(path)
    told = ort.SessionOptions()
    told.log_severity_level = 3
    if graph:
        for axis, size in _sizes(path, inputs).items():
            told.add_free_dimension_override_by_name(axis, size)
    session = ort.InferenceSession(
        path,
        told,
        providers=_recording(options) if graph else options.told(),
        disabled_optimizers=list(options.disabled_optimizers),
    )
    # A session whose provider fails to start falls back to the CPU without an error.
    if session.get_providers()[0] != options.providers[0]:
        raise RuntimeError(f"{options.providers[0]} did not start")
    return session


def _recording(options: SessionOptions) -> list[Any]:
    if options.providers[0] != CUDA:
        raise RuntimeError(f"{options.providers[0]} records no CUDA graphs")
    return [(CUDA, {**options.provider_options, "enable_cuda_graph": "1"}), *options.providers[1:]]


def _sizes(path: Path, inputs: Mapping[str, Tensor]) -> dict[str, int]:
    """Size of every dynamic axis, by the name that the file gives it."""
    taken = onnx.load(path, load_external_data=False).graph.input
    return {
        dim.dim_param: size
        for value in taken
        for dim, size in zip(
            value.type.tensor_type.shape.dim, inputs[value.name].shape, strict=True
        )
        if dim.dim_param
    }


def _as(tensor: Tensor, kind: str) -> Tensor:
    return tensor.to(_DTYPES.get(kind, tensor.dtype)).contiguous()


def _place(tensor: Tensor) -> tuple[str, int, Any, list[int], int]:
    """What a binding wants to know."""
    kind = torch.empty(0, dtype=tensor.dtype).numpy().dtype.type
    device = tensor.device
    return device.type, device.index or 0, kind, list(tensor.shape), tensor.data_ptr()
