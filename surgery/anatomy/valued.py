"""Capturing with every value known, for models whose shapes or branches follow from computed numbers.

LED asks whether two of its masks are equal, JetMoE splits tokens by how many each expert got. torch.export can
carry real tensors along with the fake ones (its drafts do) and decide such questions by them. The graph is then
that of one call, with plain numbers for sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any
from unittest import mock

import sympy
import torch
import torch._export.utils
import torch._functorch.config
from torch import Tensor, fx, nn
from torch._subclasses import fake_utils, meta_utils
from torch.export import ExportedProgram
from torch.fx.experimental import proxy_tensor
from torch.fx.experimental.symbolic_shapes import (
    GuardOnDataDependentSymNode,
    PendingUnbackedSymbolNotFound,
)
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

_check: Any = fake_utils._check_fake_real_tensors
_copy: Any = meta_utils._safe_copy
_tell_unbacked: Any = proxy_tensor._set_unbacked_bindings


@contextmanager
def real_values() -> Iterator[None]:
    """Inside, torch.export runs the model for real beside the capture, and knows every value."""
    config: Any = torch._functorch.config
    with (
        config.patch(
            fake_tensor_propagate_real_tensors=True,
            generate_fake_kernels_from_real_mismatches=True,
        ),
        # Nobody runs the graph: it needs neither run-time checks, which stop at sizes that cannot be compared,
        # nor to tell where sizes come from, which stops at one that happens to equal another.
        mock.patch.object(torch._export.utils, "insert_deferred_runtime_asserts"),
        mock.patch.object(proxy_tensor, "_set_unbacked_bindings", _told_where_possible),
        # The place of an expert's weights in their stack follows from values, too.
        mock.patch.object(fake_utils, "_check_fake_real_tensors", _checked_where_possible),
        # torch 2.11 copies no values of parameters, and would go on with whatever is in memory.
        mock.patch.object(meta_utils, "_safe_copy", _copied),
        _Asked(),
    ):
        yield


def _copied(to: Tensor, tensor: Tensor | None) -> None:
    _copy(to, tensor.data if isinstance(tensor, nn.Parameter) else tensor)


class _Asked(TorchFunctionMode):
    """Numbers where Python takes a tensor for one: ``experts[f"expert_{i}"]``, ``x[[i, j]]`` of tensors i and j."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is Tensor.__format__:
            number = _number_behind(args[0])
            return func(*args) if isinstance(number, Tensor) else format(number, *args[1:])
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            args = (args[0], _index(args[1]), *args[2:])
        if func is torch.tensor and _has_tensors(args[0]):
            return _joined(args[0]).to(**(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _number_behind(tensor: Tensor) -> Any:
    """What one number really is; a tensor of several, or of none that is known, stays what it is."""
    real = getattr(tensor, "real_tensor", None)
    if real is None or real.ndim:
        return tensor
    with _disable_current_modes():
        return real.item()


def _has_tensors(values: Any) -> bool:
    return isinstance(values, list | tuple) and any(isinstance(v, Tensor) for v in values)


def _joined(values: Any) -> Tensor:
    """Numbers, some of which are tensors, as one tensor."""
    return torch.stack([v if isinstance(v, Tensor) else torch.tensor(v) for v in values])


def _index(index: Any) -> Any:
    """Lists of tensors as one tensor each; torch would ask every element for its memory."""
    if isinstance(index, tuple):
        return tuple(_stacked(part) for part in index)
    return _stacked(index)


def _stacked(part: Any) -> Any:
    tensors = isinstance(part, list | tuple) and all(isinstance(p, Tensor) for p in part)
    return torch.stack(tuple(part)) if tensors and part else part


def _told_where_possible(*result: Any) -> None:
    with suppress(PendingUnbackedSymbolNotFound):
        _tell_unbacked(*result)


def _checked_where_possible(*tensors: Any, **options: Any) -> None:
    with suppress(GuardOnDataDependentSymNode):
        _check(*tensors, **options)


def has_real_values(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether all weights, buffers and inputs hold values: none is on the meta device."""
    leaves = [*pytree.tree_leaves((args, dict(kwargs))), *model.parameters(), *model.buffers()]
    return not any(isinstance(leaf, torch.Tensor) and leaf.is_meta for leaf in leaves)


def settle_sizes(program: ExportedProgram) -> None:
    """Write the numbers that were seen for sizes that follow from values, in place."""
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
            _replace(node, _number(value))
        else:
            node.meta["val"] = pytree.tree_map_only(torch.Tensor, _settled, value)


def _replace(node: fx.Node, number: Any) -> None:
    """The number itself wherever the node is an argument of another, the graph's outputs apart."""
    for user in [user for user in node.users if user.op != "output"]:
        user.args = fx.map_arg(user.args, lambda n: number if n is node else n)
        user.kwargs = fx.map_arg(user.kwargs, lambda n: number if n is node else n)


def _settled(tensor: torch.Tensor) -> torch.Tensor:
    if not any(isinstance(size, torch.SymInt) for size in tensor.shape):
        return tensor
    sizes = [_number(size) for size in tensor.shape]
    return torch.empty(sizes, dtype=tensor.dtype, device="meta")


def _number(value: Any) -> Any:
    """The number behind a symbolic one."""
    if not isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
        return value
    environment: Any = value.node.shape_env
    seen = environment.real_tensor_prop_unbacked_vals
    number = sympy.sympify(value.node.expr).xreplace(seen)
    if isinstance(value, torch.SymBool):
        return bool(number)
    return int(number) if isinstance(value, torch.SymInt) else float(number)
