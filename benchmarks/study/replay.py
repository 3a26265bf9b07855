"""A step of a small model is mostly launches of kernels: on a GPU it is captured once, and replayed."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

_WARM_UP = 3


def replayed(
    step: Callable[[], Tensor], parameters: Iterable[nn.Parameter]
) -> Callable[[], Tensor]:
    """``step``, captured as a CUDA graph.

    Args:
        step: Forward and backward from tensors that stay where they are. It may wait for nothing.
        parameters: Those that it makes a gradient of. Gradients lie where they are from now on, and are
            overwritten at every call.

    Returns:
        Does what ``step`` does, and returns what it returned, always in the same tensor.
    """
    trained = list(parameters)
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
            step()
            for parameter in trained:
                parameter.grad = None
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay
