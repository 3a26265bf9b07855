"""Rewriting an exported program: one fused operator for every attention site that wholly matches."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import nn

from exporters.capture import Captured
from exporters.patterns.attention import AttentionMatch, AttentionPattern
from exporters.patterns.base import Refusal
from exporters.rewrite import Rewriter
from exporters.runtime import Operators
from surgery.anatomy.attention import find_cores
from surgery.anatomy.flow import Flow
from surgery.anatomy.graph import Graph, module_path
from surgery.anatomy.linears import LinearReader


@dataclass(frozen=True)
class Site:
    """One attention site and what became of it.

    Attributes:
        module: Path of the module whose forward computes it.
        reason: Why it was left as it is; None if it was fused.
    """

    module: str
    reason: str | None


@dataclass(frozen=True)
class Fusion:
    """What was fused, and what was not.

    Attributes:
        sites: Every attention site of the graph, in order.
        expected: The fused operators that the file must now contain.
    """

    sites: tuple[Site, ...]
    expected: Operators


def fuse(captured: Captured, model: nn.Module) -> Fusion:
    """Rewrite ``captured.program`` in place.

    Every attention site is matched strictly before the first one is rewritten; a site that does not match
    stays as it is, with the reason. Names play no part in it.

    Args:
        captured: The program; its weights are read, and stay as they are.
        model: The module it was exported from.
    """
    program = captured.program
    graph = Graph(program)
    cores, missed = find_cores(Flow(graph, LinearReader(graph, model)))
    pattern = AttentionPattern()
    found = [(core.node, pattern.match(core, graph, captured.inputs)) for core in cores]
    found += [(node, Refusal(miss.why)) for node, miss in missed]
    rewriter = Rewriter(program)
    for node, match in found:
        if isinstance(match, AttentionMatch):
            rewriter.attention(match, module_path(node))
    rewriter.finish()
    order = sorted(found, key=lambda pair: graph.order[pair[0]])
    sites = [Site(module_path(n), m.why if isinstance(m, Refusal) else None) for n, m in order]
    fused = sum(site.reason is None for site in sites)
    expected: Operators = Counter({pattern.operator: fused} if fused else {})
    return Fusion(tuple(sites), expected)
