"""Integers whose values are known while a graph is captured.

Vision towers of the Qwen and GLM kinds build their positions from ``grid_thw.tolist()``; others ask
``(ids == pad).any()``. A captured graph has no values, so that torch.export stops there. But for reading, one
set of example inputs is enough: with integer inputs, integer buffers and counting ranges as constants, torch
evaluates all that follows from them alone, and floating-point data stays symbolic as before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch.fx.experimental import proxy_tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

_LIMIT = 2**16
_COUNTING = frozenset({torch.arange, torch.zeros, torch.ones, torch.full, torch.empty})


@contextmanager
def known_integers(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Iterator[None]:
    """Inside, torch.export of ``model`` on these inputs knows the values of integers and booleans.

    Args:
        model: The model to be captured; a hook on its forward is there while the context is.
        args: Positional example inputs with real values.
        kwargs: Example inputs by name.
    """
    known = _Known()
    buffers = {name: b for name, b in model.named_buffers() if _has_values(b)}

    def enter(module: nn.Module, given: Any, named: Any) -> tuple[Any, Any]:
        # torch.export has put fake tensors in the place of inputs and buffers.
        for name, fake in module.named_buffers():
            if name in buffers:
                known.constants[id(fake)] = (fake, buffers[name])
        return known.replaced(tuple(given), args), known.replaced(dict(named), dict(kwargs))

    hook = model.register_forward_pre_hook(enter, with_kwargs=True, prepend=True)
    try:
        with ExitStack() as stack:
            # torch follows the values of one-element tensors by itself; here a whole grid is worth it.
            for module in (fake_tensor, proxy_tensor):
                stack.enter_context(mock.patch.object(module, "CONSTANT_NUMEL_LIMIT", _LIMIT))
            stack.enter_context(known)
            yield
    finally:
        hook.remove()


def has_known_integers(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether an input or a buffer is an integer or boolean tensor with values."""
    leaves = [*pytree.tree_leaves((args, dict(kwargs))), *model.buffers()]
    return any(map(_has_values, leaves))


class _Known(TorchFunctionMode):
    """Gives constants for known buffers and for tensors that count or repeat a number."""

    def __init__(self) -> None:
        super().__init__()
        self.constants: dict[int, tuple[object, Tensor]] = {}

    def replaced(self, fake: Any, real: Any) -> Any:
        """The fake inputs, with constants for those of known value."""
        leaves, spec = pytree.tree_flatten(fake)
        values = pytree.tree_leaves(real)
        if len(leaves) != len(values):
            return fake
        pairs = zip(leaves, values, strict=True)
        return pytree.tree_unflatten(
            [_constant(v) if _has_values(v) else f for f, v in pairs], spec
        )

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _COUNTING:
            return _counted(func, args, kwargs)
        if func is torch.tensor:
            args = pytree.tree_map_only(Tensor, _listed, args)  # it would ask each for its memory
        if self.constants:
            args, kwargs = pytree.tree_map_only(Tensor, self._value, (args, kwargs))
        return func(*args, **kwargs)

    def _value(self, tensor: Tensor) -> Tensor:
        fake, real = self.constants.get(id(tensor), (None, tensor))
        return _constant(real) if fake is tensor else tensor


def _counted(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    numbers = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if not isinstance(leaf, bool)]
    if any(isinstance(leaf, Tensor | torch.SymInt | torch.SymFloat) for leaf in numbers):
        return func(*args, **kwargs)
    with torch.utils._python_dispatch._disable_current_modes():
        made = func(*args, **kwargs)
    return _constant(made) if _has_values(made) else func(*args, **kwargs)


def _constant(tensor: Tensor) -> Tensor:
    """The same values, entered as a literal: torch follows those."""
    return torch.tensor(tensor.tolist(), dtype=tensor.dtype, device=tensor.device)


def _listed(tensor: Tensor) -> Any:
    """The numbers in a tensor of known values, one by one: torch.export evaluates nothing else."""
    return [_listed(row) for row in tensor.unbind(0)] if tensor.ndim else tensor.item()


def is_whole(value: object) -> bool:
    """Whether a value is a tensor of integers or booleans."""
    if not isinstance(value, Tensor):
        return False
    return not (value.is_floating_point() or value.is_complex())


def _has_values(value: object) -> bool:
    if not isinstance(value, Tensor) or value.is_meta or value.numel() > _LIMIT:
        return False
    return is_whole(value)
