"""A file in plain ONNX Runtime: warm-up, IO binding, many threads on one session. No PyTorch.

python -m examples.serving.onnxruntime_server model.onnx cat.jpg dog.jpg
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from PIL import Image

from examples.serving.preprocess import Feeds, facts, image_transform

_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
_LENGTH, _PAST = 8, "past_sequence"


class Server:
    """One session that any number of threads may call.

    The session options that the file recommends are applied as they stand in its metadata. Outputs are
    bound to memory that ONNX Runtime allocates: on a GPU nothing is copied before it is asked for.

    Args:
        path: An exported file (not one that takes adapters: IO binding would ignore them).
        threads: Of one call. With as many callers as cores, 1 gives the most calls a second.
        warm: Batch sizes to run before the first request.
    """

    def __init__(self, path: str | Path, *, threads: int = 1, warm: Sequence[int] = (1, 8)) -> None:
        self.facts = _facts(path)
        advice = self.facts["session_options"]
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.session = ort.InferenceSession(
            path, options, providers=advice["providers"],
            disabled_optimizers=advice["disabled_optimizers"],
        )  # fmt: skip
        self.labels: list[str] | None = self.facts.get("labels")
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        if self.session.get_overridable_initializers():
            raise ValueError("this file takes adapters: use exporters.AdapterSession")
        for feeds in self.warm_up(warm):
            self(feeds)

    def __call__(self, feeds: Feeds) -> list[np.ndarray[Any, Any]]:
        """Run one batch. Each call has a binding of its own, so that threads never share one."""
        binding = self.session.io_binding()
        for name, value in feeds.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(value))
        for output in self.session.get_outputs():
            binding.bind_output(output.name, "cpu")
        self.session.run_with_iobinding(binding)
        return list(binding.copy_outputs_to_cpu())

    def warm_up(self, batches: Sequence[int]) -> Iterator[Feeds]:
        """Inputs of zeros, and masks of ones, at these batch sizes; for a cache prompts, with no past."""
        for batch in batches:
            yield {name: _zeros(value, batch) for name, value in self.inputs.items()}

    def classify(self, images: Sequence[Image.Image]) -> list[tuple[str, float]]:
        """Label and probability of each picture."""
        transform = image_transform(self.facts["preprocessing"])
        (name,) = self.inputs
        (logits,) = self({name: np.stack([transform(image) for image in images])})
        scores = np.exp(logits - logits.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        best = scores.argmax(-1)
        names = self.labels or [str(i) for i in range(scores.shape[-1])]
        return [(names[i], float(row[i])) for i, row in zip(best, scores, strict=True)]

    def many(self, batches: Sequence[Feeds], workers: int) -> list[list[np.ndarray[Any, Any]]]:
        """Run batches from ``workers`` threads; ONNX Runtime lets go of the interpreter meanwhile."""
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(self, batches))


def _facts(path: str | Path) -> dict[str, Any]:
    """The metadata, before it is known how the session is best opened: nothing is optimised here."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return facts(session.get_modelmeta().custom_metadata_map)


def _zeros(value: Any, batch: int) -> np.ndarray[Any, Any]:
    first, *rest = value.shape
    shape = [batch if isinstance(first, str) else first]
    # The mask of a file with a cache covers past and new tokens together.
    shape += [size if isinstance(size, int) else 0 if size == _PAST else _LENGTH for size in rest]
    fill = 1 if "mask" in value.name else 0
    return np.full(shape, fill, _DTYPES[value.type])


def main() -> None:
    """Classify the pictures named on the command line."""
    path, *pictures = sys.argv[1:]
    server = Server(path)
    opened = [Image.open(picture) for picture in pictures]
    for picture, (label, share) in zip(pictures, server.classify(opened), strict=True):
        print(f"{picture}: {label} ({share:.1%})")


if __name__ == "__main__":
    main()
