"""What an attention site says of its reads: which rows play which role, and whether a gradient comes to them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from torch import fx

from policies.roles import Role
from surgery.anatomy.flow import Flow
from surgery.anatomy.graph import detaches
from surgery.anatomy.linears import LinearRead
from surgery.anatomy.provenance import rows_reaching
from surgery.anatomy.sites import SiteReads
from surgery.anatomy.types import Rows


@dataclass(frozen=True, eq=False)
class Claim:
    """One role of one read.

    Attributes:
        role: What the rows do.
        read: The linear read.
        rows: Its output channels that do it; empty where none was seen to reach the operand.
        learns: Whether a gradient comes to them.
    """

    role: Role
    read: LinearRead
    rows: Rows
    learns: bool

    @property
    def lost(self) -> str:
        """What is to be said where it has no rows."""
        return f"{self.role.short}: no row of {self.read.weight} behind it was seen to reach it"


def claims_of(site: SiteReads, flow: Flow) -> tuple[Claim, ...]:
    """The claims of a site, by role in the order query, key, value, output."""
    core = site.core
    operands = {Role.QUERY: core.query, Role.KEY: core.key, Role.VALUE: core.value}
    uses: dict[LinearRead, list[Role]] = defaultdict(list)
    for role, reads in zip(operands, (site.query, site.key, site.value), strict=True):
        for read in _ordered(reads, flow):
            uses[read].append(role)
    found: dict[Role, list[Claim]] = {role: [] for role in operands}
    for read, roles in uses.items():
        ends = [operands[role] for role in roles]
        for role, end, rows in zip(roles, ends, rows_reaching(read, ends, flow), strict=True):
            learns = learned(read, flow) and (rows == read.rows or _learned_by(read, end, flow))
            found[role].append(Claim(role, read, rows, learns))
    output = [
        Claim(Role.ATTENTION_OUTPUT, read, read.rows, learned(read, flow))
        for read in _ordered(site.output, flow)
    ]
    return (*(claim for claims in found.values() for claim in claims), *output)


def learned(read: LinearRead, flow: Flow) -> bool:
    """Whether a gradient comes from an output of the model to the weight, by this read."""
    return read.node in flow.graph.learning and read.source in flow.graph.learning


def _learned_by(read: LinearRead, operand: fx.Node, flow: Flow) -> bool:
    """Whether a gradient comes to the operand and goes on from there to the read."""
    if operand not in flow.graph.learning:
        return False
    reached = {read.node}
    for node in _ordered_nodes(flow.region(read.node, [operand]), flow):
        if not detaches(node) and any(source in reached for source in node.all_input_nodes):
            reached.add(node)
    return operand in reached


def _ordered(reads: Iterable[LinearRead], flow: Flow) -> list[LinearRead]:
    return sorted(reads, key=lambda read: flow.graph.order[read.node])


def _ordered_nodes(nodes: Iterable[fx.Node], flow: Flow) -> list[fx.Node]:
    return sorted(nodes, key=flow.graph.order.__getitem__)
