"""Where a model switches gradients off, told to torch.export while it captures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

_apply: Any = Function.__dict__["apply"]


@contextmanager
def visible_gradients() -> Iterator[None]:
    """Inside, gradients are enabled, and a captured graph shows which of its regions disable them.

    ``torch.inference_mode`` in the model counts as ``torch.no_grad``. What the forward of a custom
    ``autograd.Function`` disables does not count: its backward is its own (reversible layers, checkpoints).
    """
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        mock.patch.object(Function, "apply", classmethod(_applied)),
        mock.patch.object(torch._C, "_InferenceMode", _switched),
    ):
        yield


class _Unrecorded(TorchFunctionMode):
    """Switches of the grad mode happen inside, and stay out of the graph."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch._C._set_grad_enabled:
            with torch._C.DisableTorchFunction():
                return func(*args)
        return func(*args, **(kwargs or {}))


def _applied(kind: type[Function], *args: Any, **kwargs: Any) -> Any:
    with _Unrecorded():
        return _apply.__get__(None, kind)(*args, **kwargs)


def _switched(inference: bool) -> torch.set_grad_enabled:
    return torch.set_grad_enabled(not inference)
