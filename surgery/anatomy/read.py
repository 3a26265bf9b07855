"""From a captured graph to an Anatomy: who plays which role, with which rows, at which depth."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import fx, nn

from policies.roles import Role
from surgery.anatomy.attention import NoMatch
from surgery.anatomy.capture import Values, capture_for_reading
from surgery.anatomy.claims import Claim, claims_of, learned
from surgery.anatomy.feed_forward import FeedForwardReads, find_feed_forward
from surgery.anatomy.flow import Flow
from surgery.anatomy.graph import Graph, module_path, op_name, shape_of
from surgery.anatomy.heads import find_heads
from surgery.anatomy.inputs import ExampleInputs, example_inputs
from surgery.anatomy.layers import Blocks
from surgery.anatomy.linears import LinearRead, LinearReader
from surgery.anatomy.parts import Parts
from surgery.anatomy.provenance import count
from surgery.anatomy.regions import inline
from surgery.anatomy.sites import SiteReads, find_attention
from surgery.anatomy.stacked import stacked_weights
from surgery.anatomy.types import (
    Anatomy,
    AttentionSite,
    FeedForward,
    Projection,
    Rows,
    Unplaced,
)
from surgery.anatomy.wrappers import refuse_inference_tensors, unwrap
from surgery.anatomy.writes import without_writes


def read(model: nn.Module, example_inputs: Any = None) -> Anatomy:
    """Read what a model is from its torch.export graph. The model is not changed in any way.

    Args:
        model: A vision or language model in any mode, dtype or device, the meta device included.
        example_inputs: A tensor, a tuple of positional or a mapping of named inputs, batch 2 or
            more. None asks timm's pretrained_cfg or transformers' config.

    Returns:
        The anatomy: attention sites, feed-forward blocks, head, every other linear, and what
        could not be placed, with the reason. ``print`` it.

    Raises:
        CaptureError: If inputs cannot be made or the graph cannot be captured.
        StateError: If the model is wrapped by DDP, FSDP or PEFT, or was made under ``torch.inference_mode``.
    """
    model = unwrap(model)
    refuse_inference_tensors(model)
    inputs = _inputs(model, example_inputs)
    program, values = capture_for_reading(model, inputs.args, inputs.kwargs)
    graph = Graph(without_writes(inline(program)), inputs.leaves())
    return Reading(model, Flow(graph, LinearReader(graph, model))).anatomy(inputs, values)


def _inputs(model: nn.Module, given: Any) -> ExampleInputs:
    return example_inputs(model, given)


class Reading:
    """One pass over one graph; its steps run in order and each claims the reads that it explains."""

    def __init__(self, model: nn.Module, flow: Flow) -> None:
        self.model, self.flow = model, flow
        self.sites, self.missed = find_attention(flow)
        self.calls = _count_calls(flow.reader.reads)
        taken = {r for site in self.sites for r in site.reads}
        self.heads = find_heads(flow) - taken
        self.feed_forward = find_feed_forward(flow, taken | self.heads)
        taken |= {r for block in self.feed_forward for r in _block_reads(block)}
        self.others = [r for r in flow.reader.reads if r not in taken]
        results = [site.core.result for site in self.sites]
        self.blocks = Blocks(flow.graph, results, [f.up[0].node for f in self.feed_forward])
        self.parts = self._parts()
        self.claims = [claims_of(site, flow) for site in self.sites]
        self.learning = self._learning()

    def anatomy(self, inputs: ExampleInputs, values: Values = "any") -> Anatomy:
        """The reading as plain data."""
        sites = self._sites()
        feed_forward = self._feed_forward()
        groups: tuple[AttentionSite | FeedForward, ...] = (*sites, *feed_forward)
        placed = {p.weight_name for group in groups for p in group.projections}
        others = dict.fromkeys(self._other(r) for r in self.others if r.weight not in placed)
        kind = type(self.model)
        return Anatomy(
            model=f"{kind.__module__}.{kind.__qualname__}",
            sites=sites,
            feed_forward=feed_forward,
            others=tuple(others),
            unplaced=self._unplaced(),
            depth=len(self.blocks),
            embeddings=_embedding_rows(self.flow.graph),
            inputs=inputs.describe(),
            values=values,
        )

    def _sites(self) -> tuple[AttentionSite, ...]:
        merged: dict[object, AttentionSite] = {}
        for run, (site, claims) in enumerate(zip(self.sites, self.claims, strict=True)):
            projections = self._site_projections(site, claims)
            key = projections or run  # no two attentions without a linear are one site
            found = merged.get(key)
            notes = (*site.core.notes, *site.remarks, *site.problems, *_lost(claims))
            merged[key] = (
                replace(found, calls=found.calls + 1)
                if found
                else AttentionSite(
                    f"attention.{len(merged)}", site.core.kind, self.blocks(site.module),
                    site.module, projections, 1, run, notes,
                )
            )  # fmt: skip
        return tuple(merged.values())

    def _site_projections(self, site: SiteReads, claims: Iterable[Claim]) -> tuple[Projection, ...]:
        made = (self._projection(c.role, c.read, c.rows, site.module) for c in claims if c.rows)
        return tuple(dict.fromkeys(made))

    def _learning(self) -> frozenset[tuple[str, Rows]]:
        """The rows that a gradient comes to, by whichever of their reads."""
        parts = [(r, r.rows) for r in self.flow.reader.reads]
        for block in self.feed_forward:
            parts += [part for part in (block.up, block.gate) if part]
        found = {(r.weight, rows) for r, rows in parts if learned(r, self.flow)}
        claims = (claim for claims in self.claims for claim in claims)
        return frozenset(found | {(c.read.weight, c.rows) for c in claims if c.learns})

    def _feed_forward(self) -> tuple[FeedForward, ...]:
        found: dict[tuple[Projection, ...], int | None] = {}
        for block in self.feed_forward:
            parts = [(Role.UP, *block.up), (Role.DOWN, block.down, block.down.rows)]
            if block.gate:
                parts.insert(1, (Role.GATE, *block.gate))
            path = module_path(block.up[0].node)
            projections = tuple(self._projection(role, r, rows, path) for role, r, rows in parts)
            found.setdefault(projections, self.blocks(path))
        return tuple(
            FeedForward(f"feed_forward.{i}", layer, projections)
            for i, (projections, layer) in enumerate(found.items())
        )

    def _other(self, read_: LinearRead) -> Projection:
        role = Role.HEAD if read_ in self.heads else Role.OTHER
        return self._projection(role, read_, read_.rows, module_path(read_.node))

    def _projection(self, role: Role, read_: LinearRead, rows: Rows, path: str) -> Projection:
        owner = self.flow.reader.modules[read_.module]
        return Projection(
            role=role,
            module=read_.module,
            parameter=read_.parameter,
            rows=rows,
            in_features=read_.in_features,
            out_features=count(rows),
            weight_out_features=read_.weight_out_features,
            layout=read_.layout,
            access=read_.access,
            layer=self.blocks(path),
            calls=self.calls[read_.weight],
            tied_to=read_.tied_to,
            bias=read_.bias is not None,
            reaches_output=(read_.weight, rows) in self.learning,
            module_type=f"{type(owner).__module__}.{type(owner).__qualname__}",
            parts=self.parts[read_.weight],
        )

    def _parts(self) -> dict[str, tuple[str, ...]]:
        """The parts that each weight lies in; of all sites, blocks and reads that share it."""
        groups = [list(site.reads) for site in self.sites]
        groups += [list(_block_reads(block)) for block in self.feed_forward]
        groups += [[read_] for read_ in self.flow.reader.reads]
        return Parts(self.flow, self.sites).by_weight(groups)

    def _unplaced(self) -> tuple[Unplaced, ...]:
        found = [_missed(node, miss) for node, miss in self.missed]
        for site, claims in zip(self.sites, self.claims, strict=True):
            what = f"{site.core.kind} attention"
            said = (*site.problems, *_lost(claims))
            found += [Unplaced(what, site.module, problem) for problem in said]
        found += [
            Unplaced("linear", module_path(n), why) for n, why in self.flow.reader.unread.items()
        ]
        found += [_stack(name, node) for name, node in stacked_weights(self.flow).items()]
        return tuple(dict.fromkeys(found))


def _lost(claims: Sequence[Claim]) -> list[str]:
    """What is to be said of roles without any rows; one of several reads may give none (a rotary part of size 0)."""
    found = {claim.role for claim in claims if claim.rows}
    return [claim.lost for claim in claims if claim.role not in found]


def _stack(name: str, node: fx.Node) -> Unplaced:
    why = f"{name} stacks many matrices, multiplied by {op_name(node)}: no role can name its rows"
    return Unplaced("stacked weights", module_path(node), why)


def _missed(node: fx.Node, miss: NoMatch) -> Unplaced:
    return Unplaced(op_name(node), module_path(node), miss.why)


def _block_reads(block: FeedForwardReads) -> Iterable[LinearRead]:
    yield from (block.up[0], block.down)
    if block.gate:
        yield block.gate[0]


def _count_calls(reads: Iterable[LinearRead]) -> dict[str, int]:
    """How often each weight is applied; several blocks of one packed weight count once."""
    calls: dict[tuple[str, range], int] = defaultdict(int)
    for read_ in reads:
        calls[read_.weight, read_.channels] += 1
    counted: dict[str, int] = {}
    for (weight, _), number in calls.items():
        counted[weight] = max(counted.get(weight, 0), number)
    return counted


def _embedding_rows(graph: Graph) -> tuple[int, ...]:
    """The sizes of the tables that something of the inputs is looked up in; one of positions is none."""
    found = [n for n in graph.nodes if op_name(n) == "embedding" and n.args[1] in graph.data]
    tables = [n.args[0] for n in found]
    return tuple(dict.fromkeys(shape_of(t)[0] for t in tables if isinstance(t, fx.Node)))
