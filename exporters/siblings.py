"""Two slices make one split only if they are of one tensor: onnxscript's optimiser would try all pairs of a graph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import onnx_ir as ir
from onnxscript.rewriter._matcher import SimplePatternMatcher


@dataclass(frozen=True)
class _Siblings:
    """What onnxscript goes through instead of a graph: the nodes that read the first input of ``node``."""

    graph: ir.Graph
    node: ir.Node

    def __iter__(self) -> Iterator[ir.Node]:
        first = self.node.inputs[0] if self.node.inputs else None
        readers = () if first is None else dict.fromkeys(first.consumers())
        return (reader for reader in readers if reader.graph is self.graph)


@contextmanager
def only_siblings_are_paired() -> Iterator[None]:
    """Inside, patterns of several nodes that read one value are sought among its readers; one thread at a time.

    onnxscript tries every pair of slices in the graph, so its time grows with their square: four fifths of the
    translation where a recurrence is unrolled into thousands of them (Kimi Linear, Qwen3-Next).
    """
    matches = SimplePatternMatcher.match

    def among_siblings(matcher: Any, model: ir.Model, where: Any, node: ir.Node, **how: Any) -> Any:
        found: Any = where
        if _reads_one_value(matcher.pattern):
            found = _Siblings(where if isinstance(where, ir.Graph) else where.graph, node)
        return matches(matcher, model, found, node, **how)

    with mock.patch.object(SimplePatternMatcher, "match", among_siblings):
        yield


def _reads_one_value(pattern: Any) -> bool:
    first, *others = pattern.output_nodes
    return bool(others) and all(
        other.inputs and first.inputs and other.inputs[0] is first.inputs[0] for other in others
    )
