"""Row provenance: which output channels of a projection reach which operand, read rather than guessed.

Only the sub-graph between a projection and the operands is run, on small benign tensors, and
autograd says which channels matter. No weight is touched and none is needed: a model on the meta
device is read as well as a real one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import islice, product
from typing import Any

import torch
from torch import Tensor, fx

from surgery.anatomy.flow import Flow, is_depthwise
from surgery.anatomy.graph import detaches, op_name, shape_of
from surgery.anatomy.linears import LinearRead
from surgery.anatomy.operators import MODULATIONS
from surgery.anatomy.types import Rows

_KEEPS_ALL_CHANNELS = frozenset(
    """
    _to_copy _unsafe_view alias clone constant_pad_nd contiguous detach div dropout expand
    flatten layer_norm mean mul neg pad permute pow repeat_interleave reshape reshape_as
    rms_norm roll rsqrt squeeze to transpose unflatten unsqueeze view view_as
    """.split()  # noqa: SIM905
)


def rows_reaching(read: LinearRead, operands: Sequence[fx.Node], flow: Flow) -> list[Rows]:
    """For each operand, the output channels of ``read`` on which its value depends.

    Channels are counted in the whole parameter: a read of rows 384..767 of a packed weight gives rows from 384 on.

    Args:
        read: The projection.
        operands: Nodes computed from it.
        flow: The walks over the graph that both belong to.

    Returns:
        One set of runs for each operand; empty where nothing reaches it.
    """
    if len(operands) == 1 and _keeps_all_channels(read.node, operands[0], flow):
        return [read.rows]
    # Whatever the user's default device and mode are: the values are made up here, and so are their gradients.
    with torch.device("cpu"), torch.inference_mode(False), torch.enable_grad():
        channels = _reached(read, operands, flow)
    return [
        read.rows if len(found) == read.out_features else to_runs(read.channels[c] for c in found)
        for found in channels
    ]


def to_runs(channels: Iterable[int]) -> Rows:
    """Compress channel numbers into ``(start, stop, 1)`` runs: [0, 1, 2, 6, 7] -> ((0, 3, 1), (6, 8, 1))."""
    runs: list[tuple[int, int, int]] = []
    for channel in sorted(set(channels)):
        if runs and runs[-1][1] == channel:
            runs[-1] = (runs[-1][0], channel + 1, 1)
        else:
            runs.append((channel, channel + 1, 1))
    return tuple(runs)


def count(rows: Rows) -> int:
    """Number of channels in the runs."""
    return sum(len(range(*run)) for run in rows)


def _keeps_all_channels(start: fx.Node, stop: fx.Node, flow: Flow) -> bool:
    between = flow.region(start, [stop]) - {start}
    return all(op_name(node) in _KEEPS_ALL_CHANNELS or is_depthwise(node) for node in between)


def _reached(read: LinearRead, operands: Sequence[fx.Node], flow: Flow) -> list[set[int]]:
    """The channels that reach each operand under some mask, whether or not a gradient may come back from it."""
    first = _Probe(flow)
    found = [set(channels) for channels in first.channels(read, operands)]
    masks = _MASKS if first.masked else _MASKS[:1]
    for mask, through in islice(product(masks, (False, True) if first.cut else (False,)), 1, None):
        with suppress(Exception):  # what one mask picks may have no size that fits what follows
            again = _Probe(flow, mask, through).channels(read, operands)
            found = [own.union(more) for own, more in zip(found, again, strict=True)]
    return found


_MASKS = (1.0, 0.0, 0.5)
"""Shares of a made-up mask that are true: a user's may hide anything, but not under all of these."""


class _Probe:
    """Runs a sub-graph on benign values.

    Args:
        flow: The walks over the graph.
        mask: How much of a mask that depends on the user's inputs is true.
        through: Whether gradients go through ``detach``.

    Attributes:
        masked: Whether there was such a mask.
        cut: Whether there was such a ``detach``.
    """

    def __init__(self, flow: Flow, mask: float = _MASKS[0], through: bool = False) -> None:
        self.flow, self.mask, self.through = flow, mask, through
        self.generator = torch.Generator().manual_seed(0)
        self.values: dict[fx.Node, Any] = {}
        self.masked = self.cut = False

    def channels(self, read: LinearRead, operands: Sequence[fx.Node]) -> list[list[int]]:
        """Output channels of ``read`` with a gradient from each operand."""
        leaf = self._benign(shape_of(read.node)).requires_grad_()
        region = self.flow.region(read.node, operands) - {read.node}
        self.cut = any(map(detaches, region))
        self.values[read.node] = leaf
        for node in sorted(region, key=self.flow.graph.order.__getitem__):
            self.values[node] = self._run(node)
        return [self._reached(leaf, self.values.get(op), read.channel_dims) for op in operands]

    def _reached(self, leaf: Tensor, value: object, dims: tuple[int, ...]) -> list[int]:
        if not isinstance(value, Tensor) or not value.requires_grad:
            return []
        value = torch.view_as_real(value) if value.is_complex() else value
        weights = self._benign(tuple(value.shape))
        (grad,) = torch.autograd.grad((value * weights).sum(), leaf, retain_graph=True)
        others = [d for d in range(grad.ndim) if d not in dims]
        reached = (grad != 0).permute(*others, *dims).flatten(len(others)).flatten(0, -2)
        return reached.any(0).nonzero().flatten().tolist()

    def _run(self, node: fx.Node) -> Any:
        args: Any = fx.node.map_arg(node.args, self._value)
        kwargs: dict[str, Any] = dict(fx.node.map_arg(node.kwargs, self._value))
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        if op_name(node) in {"to", "_to_copy"} or (self.through and detaches(node)):
            # Half precision would underflow, integers cut the gradient: stay in float32.
            return args[0]
        if op_name(node) == "copy":
            return args[1].expand_as(args[0])  # aten.copy has no derivative, expand has
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _value(self, node: fx.Node) -> Any:
        """A node's value: computed for the region, made up for what enters it from outside."""
        if node not in self.values:
            self.values[node] = self._outside(node)
        return self.values[node]

    def _outside(self, node: fx.Node) -> Any:
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            return self._run(node) if node.op == "call_function" else value
        if value.is_floating_point() or value.is_complex():
            made = self._benign(tuple(int(s) for s in value.shape))
            return torch.complex(made, made) if value.is_complex() else made
        return self._integers(node, value)

    def _integers(self, node: fx.Node, value: Tensor) -> Tensor:
        """Indices must be the real ones, as far as they do not depend on the user's inputs."""
        constant = self.flow.graph.constant(node)
        if constant is not None and constant.device.type != "meta":
            return constant.detach().cpu()
        if node.op == "call_function" and node not in self.flow.graph.data:
            found = self._run(node)
            assert isinstance(found, Tensor)
            return found
        shape = tuple(int(s) for s in value.shape)
        if value.dtype is torch.bool:
            self.masked = True
            return torch.rand(shape, generator=self.generator) < self.mask
        # What multiplies is a mask, too; an index must lie within bounds, whatever they are.
        multiplies = all(op_name(user) in MODULATIONS for user in node.users)
        return (torch.ones if multiplies else torch.zeros)(shape, dtype=value.dtype)

    def _benign(self, shape: tuple[int, ...]) -> Tensor:
        """Values in [0.5, 1.5]: no zero, no sign change, nothing that a norm could blow up."""
        return torch.rand(shape, generator=self.generator) + 0.5
