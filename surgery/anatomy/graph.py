"""A captured program as a graph that can be asked questions: owners, data flow, walks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

_REPEATED_CALL = re.compile(r"@\d+")


def op_name(node: fx.Node) -> str:
    """Name of the operator without namespace, overload or in-place mark: ``linear``, ``getitem``."""
    packet = getattr(node.target, "overloadpacket", None)
    name = packet.__name__ if packet is not None else getattr(node.target, "__name__", node.op)
    return str(name).rstrip("_") if not str(name).startswith("_") else str(name)


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Shape of a node's value, at the sizes it was captured at; empty for anything that is no tensor."""
    value: Any = node.meta.get("val")
    return tuple(size_of(size) for size in value.shape) if isinstance(value, Tensor) else ()


def size_of(size: int | torch.SymInt) -> int:
    """The size a dimension was captured at. ``int()`` would make a dynamic one a constant for good.

    A size that follows from values has none: it gets a negative number that equals no other size's.
    """
    if isinstance(size, int):
        return size
    hint: Any = size.node.hint
    return -1 - crc32(str(size).encode()) if is_open(size) else int(hint)


def is_open(number: object) -> bool:
    """Whether a number of the graph follows from the values of a tensor, so that nobody knows it."""
    return isinstance(number, torch.SymInt | torch.SymFloat) and number.node.hint is None


def module_path(node: fx.Node) -> str:
    """Path of the innermost module whose forward ran this node."""
    stack = node.meta.get("nn_module_stack") or {}
    if not stack:
        return ""
    path, _ = list(stack.values())[-1]
    return _REPEATED_CALL.sub("", path)


class Graph:
    """Read-only view of an exported program.

    Args:
        program: What was captured.
        given: The example inputs. Where their values became constants of the graph, these still count as inputs.
    """

    def __init__(self, program: ExportedProgram, given: Sequence[Tensor] = ()) -> None:
        self.program = program
        self.nodes = [n for n in program.graph.nodes if n.op == "call_function"]
        self.order = {node: i for i, node in enumerate(program.graph.nodes)}
        self._owned: dict[str, str] = {}
        self._inputs: set[str] = set()
        for spec in program.graph_signature.input_specs:
            name = getattr(spec.arg, "name", None)
            if name is None:
                continue
            if spec.kind is InputKind.USER_INPUT or (
                spec.kind is InputKind.CONSTANT_TENSOR and self._is_one_of(given, spec.target)
            ):
                self._inputs.add(name)
            elif spec.target is not None:
                self._owned[name] = spec.target

    def _is_one_of(self, given: Sequence[Tensor], target: str | None) -> bool:
        constant = self.program.constants.get(target or "")
        return isinstance(constant, Tensor) and any(
            not value.is_meta and value.dtype == constant.dtype and torch.equal(value, constant)
            for value in given
        )

    def tensor_name(self, node: fx.Node) -> str | None:
        """State-dict name of the parameter, buffer or constant behind a placeholder, if it is one."""
        return self._owned.get(node.name) if node.op == "placeholder" else None

    def constant(self, node: fx.Node) -> Tensor | None:
        """The real tensor behind a placeholder, or None for a user input."""
        name = self.tensor_name(node)
        if name is None:
            return None
        found = self.program.state_dict.get(name, self.program.constants.get(name))
        return found if isinstance(found, Tensor) else None

    @cached_property
    def inputs(self) -> tuple[fx.Node, ...]:
        """The placeholders of the user's inputs."""
        return tuple(n for n in self.program.graph.nodes if n.name in self._inputs)

    @cached_property
    def data(self) -> frozenset[fx.Node]:
        """Nodes whose *values* depend on the user's inputs (masks and positions made from shapes do not)."""
        return self.descendants(self.inputs)

    def descendants(self, starts: Iterable[fx.Node]) -> frozenset[fx.Node]:
        """Every node computed from any of ``starts``, themselves included."""
        found = set(starts)
        for node in self.nodes:
            if any(source in found for source in node.all_input_nodes):
                found.add(node)
        return frozenset(found)

    def histories(self, starts: Sequence[fx.Node]) -> dict[fx.Node, int]:
        """Which of ``starts`` each node is computed from, itself included: one bit for each."""
        own = {node: 1 << number for number, node in enumerate(starts)}
        found: dict[fx.Node, int] = {}
        for node in self.nodes:
            found[node] = own.get(node, 0)
            for source in node.all_input_nodes:
                found[node] |= found.get(source, 0)
        return found

    @cached_property
    def live(self) -> frozenset[fx.Node]:
        """Nodes from which a path leads to an output of the model, or to a write in place that may."""
        ends = [n for n in self.program.graph.nodes if n.op == "output" or writes(n)]
        return frozenset(backward(ends))

    @cached_property
    def learning(self) -> frozenset[fx.Node]:
        """The live nodes that a gradient comes to: a ``detach`` lets none through."""
        ends = [n for n in self.program.graph.nodes if n.op == "output" or writes(n)]
        return frozenset(backward(ends, until=detaches))

    @cached_property
    def outputs(self) -> tuple[fx.Node, ...]:
        """The nodes that the model returns."""
        last = next(n for n in self.program.graph.nodes if n.op == "output")
        return tuple(last.all_input_nodes)


def writes(node: fx.Node) -> bool:
    """Whether an operator changes one of its inputs in place."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def detaches(node: fx.Node) -> bool:
    """Whether no gradient goes through a node."""
    return op_name(node) == "detach"


def backward(
    starts: list[fx.Node], until: Callable[[fx.Node], bool] = lambda node: False
) -> Iterator[fx.Node]:
    """Every node that ``starts`` depend on, themselves included, without those for which ``until`` holds."""
    seen, stack = set(starts), list(starts)
    while stack:
        node = stack.pop()
        if until(node):
            continue
        yield node
        for source in node.all_input_nodes:
            if source not in seen:
                seen.add(source)
                stack.append(source)


def is_tensor(node: fx.Node) -> bool:
    """Whether the node's value is one tensor."""
    return isinstance(node.meta.get("val"), torch.Tensor)
