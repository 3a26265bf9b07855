"""The sizes for which a captured graph holds: a model that branches on a size has another graph elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import sympy
import torch
from torch.export import ExportedProgram
from torch.utils._sympy.printers import PythonPrinter

from exporters.causal import PAST_SEQUENCE, TOTAL_SEQUENCE

_UNBOUNDED = 2**31
_PLAIN = 2
"""torch.export asks of every dynamic size that it be 2 or more; what it made of that holds for 1 as well."""
_TRIED, _FEW = range(_PLAIN, 66), (2, 3, 4, 7, 8, 16, 33, 64)
_STEP = (PAST_SEQUENCE, TOTAL_SEQUENCE)
"""What these sizes have to do with each other is part of the interface of a file with a cache."""

Limits = Mapping[str, tuple[int, int]]


def limits_of(program: ExportedProgram, symbols: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """Smallest and largest size of each axis; several inputs share an axis, the narrowest counts.

    Args:
        program: What was captured.
        symbols: The axis behind each of its symbols.
    """
    limits = dict.fromkeys(symbols.values(), (1, _UNBOUNDED))
    for symbol, found in program.range_constraints.items():
        axis = symbols.get(str(symbol))
        if axis is not None and axis not in _STEP:
            lower, upper = limits[axis]
            least = int(found.lower) if found.lower > _PLAIN else 1
            most = int(found.upper) if found.upper < _UNBOUNDED else _UNBOUNDED
            limits[axis] = (max(lower, least), min(upper, most))
    return limits


def described(limits: Limits, sizes: Mapping[str, int]) -> dict[str, dict[str, int | None]]:
    """The limits as plain data, for whoever serves the file, with the traced sizes; most is None for any."""
    return {
        axis: {"least": least, "most": most if most < _UNBOUNDED else None, "traced": sizes[axis]}
        for axis, (least, most) in limits.items()
        if axis not in _STEP
    }


def told(program: ExportedProgram, symbols: Mapping[str, str], limits: Limits) -> Iterator[str]:
    """What a reader should know of sizes for which the graph does not hold."""
    for axis, (lower, upper) in limits.items():
        if upper < _UNBOUNDED:
            yield f"{axis} may be {lower} to {upper}: beyond, the model has another graph or none"
        elif lower > 1:
            yield f"{axis} may be {lower} or more: below, the model has another graph or none"
    for condition in sorted(_conditions(program, symbols, limits)):
        yield f"the graph holds where {condition}: elsewhere the model may have another"


def _conditions(program: ExportedProgram, symbols: Mapping[str, str], limits: Limits) -> set[str]:
    """What the model asked of sizes on its way, and what not all sizes within the limits answer alike."""
    found = set()
    for guard in _guards(program):
        axes = {symbol: symbols.get(str(symbol), "") for symbol in guard.free_symbols}
        named = all(axes.values()) and not any(axis in _STEP for axis in axes.values())
        if named and _may_fail(guard, axes, limits):
            names = {symbol: sympy.Symbol(axis) for symbol, axis in axes.items()}
            found.add(PythonPrinter().doprint(guard.xreplace(names)))
    return found


def _guards(program: ExportedProgram) -> list[sympy.Basic]:
    """Whatever was asked of sizes while the graph was captured."""
    values: list[Any] = [node.meta.get("val") for node in program.graph.nodes]
    sizes: list[Any] = [s for v in values if isinstance(v, torch.Tensor) for s in v.shape]
    open_ones = (size for size in sizes if isinstance(size, torch.SymInt))
    environment = next((size.node.shape_env for size in open_ones), None)
    asked = [] if environment is None else environment.guards
    return [guard.expr for guard in asked if not _is_of_layout(guard)]


def _is_of_layout(guard: Any) -> bool:
    """Whether torch asked how a tensor lies in memory: no value hangs on that."""
    place = getattr(getattr(guard, "sloc", None), "framework_loc", None)
    return getattr(place, "name", None) == "check_contiguous_sizes_strides"


def _may_fail(guard: sympy.Basic, axes: Mapping[sympy.Basic, str], limits: Limits) -> bool:
    tried = _TRIED if len(axes) == 1 else _FEW
    sizes = [[n for n in tried if limits[a][0] <= n <= limits[a][1]] for a in axes.values()]
    return any(_fails(guard, dict(zip(axes, chosen, strict=True))) for chosen in product(*sizes))


def _fails(guard: sympy.Basic, sizes: Mapping[sympy.Basic, int]) -> bool:
    try:
        return bool(guard.xreplace({s: sympy.Integer(n) for s, n in sizes.items()}) == sympy.false)
    except ZeroDivisionError:  # so small a size that a part of it is none
        return False
