"""Rewriting an exported program: one fused operator for every attention site that wholly matches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from exporters.capture import Captured
from exporters.inputs import Inputs
from exporters.patterns.attention import AttentionPattern
from exporters.patterns.base import Refusal
from exporters.patterns.group_query import GroupQueryPattern
from exporters.patterns.layer_scale import LayerScaleMatch, LayerScalePattern
from exporters.patterns.multihead import MultiHeadPattern
from exporters.rewrite import Rewriter
from exporters.runtime import Operators
from surgery.anatomy.attention import Core, find_cores
from surgery.anatomy.flow import Flow
from surgery.anatomy.graph import Graph, module_path, op_name
from surgery.anatomy.linears import LinearReader


class Match(Protocol):
    """A site that one operator computes."""

    @property
    def operator(self) -> tuple[str, str]:
        """Domain and type of the operator."""

    def write(self, rewriter: Rewriter, module: str) -> None:
        """Put the operator in the site's place; new weights are named after ``module``."""


class SitePattern(Protocol):
    """Recognises the sites that one operator computes."""

    def match(self, core: Core, graph: Graph, inputs: Inputs) -> Match | Refusal:
        """Return the match, or what is in the way."""


WHOLE: tuple[SitePattern, ...] = (AttentionPattern(), GroupQueryPattern(), MultiHeadPattern())
"""The one that takes most into its operator first, the one that takes most sites last."""

SCORES_ONLY: tuple[SitePattern, ...] = WHOLE[1:]
"""Leaves the projections as matrix products of their own, to be quantised."""


def decoder_patterns(positions: int | None, *, counted: bool) -> tuple[SitePattern, ...]:
    """For a step of generation; see :class:`~exporters.patterns.group_query.GroupQueryPattern`."""
    return GroupQueryPattern(positions, counted), MultiHeadPattern()


@dataclass(frozen=True)
class Site:
    """One attention site and what became of it.

    Attributes:
        module: Path of the module whose forward computes it.
        operator: The operator that computes it now; None if it was left as it is.
        reason: Why it was left as it is; None if it was fused.
    """

    module: str
    operator: str | None
    reason: str | None


@dataclass(frozen=True)
class Fusion:
    """What was fused, and what was not.

    Attributes:
        sites: Every attention site of the graph, in order.
        expected: The fused operators that the file must now contain.
        notes: What else was folded together.
    """

    sites: tuple[Site, ...]
    expected: Operators
    notes: tuple[str, ...]


def fuse(captured: Captured, model: nn.Module, patterns: Sequence[SitePattern] = WHOLE) -> Fusion:
    """Rewrite ``captured.program`` in place.

    Every attention site is matched strictly before the first one is rewritten; a site that does not match
    stays as it is, with the reason. Names play no part in it.

    Args:
        captured: The program; its weights are read, and stay as they are.
        model: The module it was exported from.
        patterns: What to fuse a site to; the first that matches is taken.
    """
    program = captured.program
    # Of an exported program's guesses about dtypes none fails; each would look like a second reader.
    for node in program.graph.nodes:
        if op_name(node) == "_assert_tensor_metadata":
            program.graph.erase_node(node)
    # Averaged attention weights that nobody asked for would look like a second reader.
    program.graph.eliminate_dead_code()
    graph = Graph(program)
    cores, missed = find_cores(Flow(graph, LinearReader(graph, model)))
    found = [(core.node, _match(core, graph, captured.inputs, patterns)) for core in cores]
    found += [(node, Refusal(miss.why)) for node, miss in missed]
    found.sort(key=lambda pair: graph.order[pair[0]])
    scale = LayerScalePattern()
    scales = [m for n in graph.nodes if isinstance(m := scale.match(n, graph), LayerScaleMatch)]
    rewriter = Rewriter(program)
    expected: Operators = Counter()
    sites = []
    for node, match in found:
        module = module_path(node)
        if isinstance(match, Refusal):
            sites.append(Site(module, None, match.why))
            continue
        match.write(rewriter, module)
        expected[match.operator] += 1
        sites.append(Site(module, match.operator[1], None))
    for scaled in scales:
        scaled.write(rewriter)
    rewriter.finish()
    notes = (f"{len(scales)} layer scales were multiplied into weights",) if scales else ()
    return Fusion(tuple(sites), expected, notes)


def _match(
    core: Core, graph: Graph, inputs: Inputs, patterns: Sequence[SitePattern]
) -> Match | Refusal:
    """The first pattern that takes the site; else what the most permissive one says."""
    found: Match | Refusal = Refusal("no pattern was tried")
    for pattern in patterns:
        found = pattern.match(core, graph, inputs)
        if not isinstance(found, Refusal):
            return found
    return found
