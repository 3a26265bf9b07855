"""Rewriting an exported program: operators for attention, weights for what norms and scales do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from exporters.capture import Captured
from exporters.inputs import Inputs
from exporters.patterns.base import Refusal
from exporters.patterns.batch_norm import BatchNormMatch, BatchNormPattern
from exporters.patterns.group_query_match import GroupQueryMatch
from exporters.patterns.layer_scale import LayerScaleMatch, LayerScalePattern
from exporters.patterns.siblings import find_siblings
from exporters.recipe import Match, Recipe
from exporters.rewrite import Rewriter
from exporters.runtime import Operators
from surgery.anatomy.attention import Core, find_cores
from surgery.anatomy.flow import Flow
from surgery.anatomy.graph import Graph, module_path, shape_of
from surgery.anatomy.linears import LinearReader


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
        sites: Every attention site of the graph, in order; none if the recipe leaves them alone.
        expected: The fused operators that the file must now contain.
        notes: What else was folded together.
    """

    sites: tuple[Site, ...]
    expected: Operators
    notes: tuple[str, ...]


class _Fixed(Graph):
    """A program some of whose constants are none: they are fed at run time."""

    def __init__(self, program: ExportedProgram, fed: Collection[str]) -> None:
        super().__init__(program)
        self._fed = fed

    def constant(self, node: fx.Node) -> Tensor | None:
        return None if self.tensor_name(node) in self._fed else super().constant(node)


def fuse(
    captured: Captured,
    model: nn.Module,
    recipe: Recipe = Recipe(),  # noqa: B008 - frozen
    fed: Collection[str] = (),
) -> Fusion:
    """Rewrite ``captured.program`` in place.

    Every attention site is matched strictly before the first one is rewritten; a site that does not match
    stays as it is, with the reason. Names play no part in it.

    Args:
        captured: The program; its weights are read, and stay as they are.
        model: The module it was exported from.
        recipe: What to do.
        fed: Weights that are no constants, because they can be fed at run time.
    """
    program = captured.program
    rewriter = Rewriter(program)
    norms = _fold_norms(program, rewriter, fed)
    graph = _Fixed(program, fed)
    flow = Flow(graph, LinearReader(graph, model))
    found = list(_match_sites(flow, captured.inputs, recipe)) if recipe.sites else []
    scale = LayerScalePattern()
    scales = [m for n in graph.nodes if isinstance(m := scale.match(n, graph), LayerScaleMatch)]
    sites, expected, packed = _write_sites(found, rewriter)
    joined = _join(found, flow, rewriter) if recipe.joins else 0
    for scaled in scales:
        scaled.write(rewriter)
    rewriter.finish()
    notes = [*_notes(norms, len(scales), packed + joined), *_rotated(found)]
    notes += (
        [] if recipe.sites else ["attention is left in standard operators for the engine to fuse"]
    )
    return Fusion(sites, expected, tuple(notes))


Found = tuple[fx.Node, Core | None, Match | Refusal]
"""Where a site is, what it computes if that could be read, and what becomes of it."""


def _fold_norms(program: ExportedProgram, rewriter: Rewriter, fed: Collection[str]) -> int:
    """Fold batch norms until none is left that can be; two may want the weights between them."""
    count = 0
    while True:
        graph, taken, matches = _Fixed(program, fed), set[fx.Node](), []
        for node in graph.nodes:
            match = BatchNormPattern().match(node, graph)
            if isinstance(match, BatchNormMatch) and taken.isdisjoint(match.changed):
                taken |= match.changed
                matches.append(match)
        if not matches:
            return count
        for match in matches:
            match.write(rewriter)
        rewriter.finish()
        count += len(matches)


def _match_sites(flow: Flow, inputs: Inputs, recipe: Recipe) -> Iterator[Found]:
    """Every site in graph order."""
    cores, missed = find_cores(flow)
    found: list[Found] = [(c.node, c, _match(c, flow.graph, inputs, recipe)) for c in cores]
    found += [(node, None, Refusal(miss.why)) for node, miss in missed]
    yield from sorted(found, key=lambda each: flow.graph.order[each[0]])


def _match(core: Core, graph: Graph, inputs: Inputs, recipe: Recipe) -> Match | Refusal:
    """The first pattern that takes the site; else what the most permissive one says."""
    operands = (core.query, core.key, core.value)
    if any(size < 0 for node in operands for size in shape_of(node)):
        return Refusal("its sizes follow from the values of tensors")
    heads = [node.meta["val"].shape[1] for node in operands if len(shape_of(node)) == 4]
    if not all(isinstance(number, int) for number in heads):
        return Refusal("the number of its heads is a dynamic size")
    found: Match | Refusal = Refusal("no pattern was tried")
    for pattern in recipe.sites:
        found = pattern.match(core, graph, inputs)
        if not isinstance(found, Refusal):
            return found
    return found


def _write_sites(found: list[Found], rewriter: Rewriter) -> tuple[tuple[Site, ...], Operators, int]:
    """What became of each, the operators written, and how many of them took several products as one."""
    expected: Operators = Counter()
    sites, packed = [], 0
    for node, _, match in found:
        module = module_path(node)
        if isinstance(match, Refusal):
            sites.append(Site(module, None, match.why))
            continue
        match.write(rewriter, module)
        expected[match.operator] += 1
        packed += match.products > 1
        sites.append(Site(module, match.operator[1], None))
    return tuple(sites), expected, packed


def _join(found: list[Found], flow: Flow, rewriter: Rewriter) -> int:
    """Join the products that no operator took; the number of sites where there were any."""
    count, done = 0, set[fx.Node]()
    for node, core, match in found:
        if core is None or (not isinstance(match, Refusal) and match.products):
            continue
        siblings = [s for s in find_siblings(core, flow.graph, flow) if done.isdisjoint(s.linears)]
        for each in siblings:
            each.write(rewriter, module_path(node))
            done.update(each.linears)
        count += bool(siblings)
    return count


def _rotated(found: list[Found]) -> Iterator[str]:
    """What holds for files whose operators rotate by tables of a fixed length."""
    matches = [match for _, _, match in found if isinstance(match, GroupQueryMatch)]
    tables = [match.tables.cos for match in matches if match.tables is not None]
    if tables:
        yield (
            f"the attention of {len(tables)} sites rotates by itself, at up to {min(map(len, tables)):,} "
            "positions, those of the model's configuration: longer inputs are refused"
        )


def _notes(norms: int, scales: int, joined: int) -> Iterator[str]:
    if norms:
        yield f"{norms} batch norms were folded into weights"
    if scales:
        yield f"{scales} layer scales were multiplied into weights"
    if joined:
        yield f"query, key and value of {joined} sites come from one matrix product, not from several"
