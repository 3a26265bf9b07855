"""Attention sites: the linear reads behind the operands of an attention and after its result."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import fx

from surgery.anatomy.attention import Core, NoMatch, find_cores
from surgery.anatomy.axes import product_operands
from surgery.anatomy.flow import Flow, adds
from surgery.anatomy.graph import is_tensor, module_path, op_name
from surgery.anatomy.linear_attention import find_linear_attention
from surgery.anatomy.linears import LinearRead
from surgery.anatomy.operators import ACTIVATIONS, ATTENTIONS, CONVOLUTIONS, MOVES, PRODUCTS, SCALES
from surgery.anatomy.provenance import rows_reaching
from surgery.anatomy.scores import is_product
from surgery.anatomy.stacked import shows_a_stack
from surgery.anatomy.token_mixers import token_mixers
from surgery.anatomy.types import indices


@dataclass(frozen=True, eq=False)
class SiteReads:
    """A core with the linear reads of its roles.

    Attributes:
        core: The attention computation.
        query, key, value, output: The linear reads of each role.
        problems: Which role could not be resolved, and why.
        remarks: Which role has no linear, as the graph shows.
    """

    core: Core
    query: frozenset[LinearRead]
    key: frozenset[LinearRead]
    value: frozenset[LinearRead]
    output: frozenset[LinearRead]
    problems: tuple[str, ...] = field(default=())
    remarks: tuple[str, ...] = field(default=())

    @property
    def module(self) -> str:
        """Path of the module whose forward computes the attention."""
        return module_path(self.core.result)

    @property
    def reads(self) -> Iterator[LinearRead]:
        """Every read of the site once."""
        yield from dict.fromkeys((*self.query, *self.key, *self.value, *self.output))


@dataclass(frozen=True)
class Role:
    """The reads of one role, or why there are none.

    Attributes:
        settled: The graph shows that there are none.
        doubtful: Reads that would be it, did they not feed other layers, too.
    """

    reads: frozenset[LinearRead] = frozenset()
    why: str | None = None
    settled: bool = False
    doubtful: frozenset[LinearRead] = frozenset()


def find_attention(flow: Flow) -> tuple[list[SiteReads], list[tuple[fx.Node, NoMatch]]]:
    """Every attention site with the linear reads behind its operands and after its result."""
    cores, missed = find_cores(flow)
    found = {core.result: core for core in (*find_linear_attention(flow), *cores)}
    for core in cores:
        for operand, channels in zip(
            (core.query, core.key, core.value), core.channels, strict=True
        ):
            flow.pass_through(token_mixers(operand, channels, flow))
    ordered = sorted(found.values(), key=lambda core: flow.graph.order[core.result])
    return [_site(core, flow) for core in ordered], missed


def _site(core: Core, flow: Flow) -> SiteReads:
    output = _output(core, flow)
    query, key, value = (
        _operand(operand, output.reads, core, flow)
        for operand in (core.query, core.key, core.value)
    )
    query, key, value = _cleared(query, key, value)
    roles = {"query": query, "key": key, "value": value, "output": output}
    return SiteReads(
        core,
        query.reads,
        key.reads,
        value.reads,
        output.reads,
        _said(roles, settled=False),
        _said(roles, settled=True),
    )


def _cleared(*operands: Role) -> tuple[Role, ...]:
    """Linears of one input are of one kind: beside a projection, one that also feeds a branch is another.

    SANM in FunASR adds a convolution of the values to what attention gives.
    """
    inputs = {read.x for role in operands for read in role.reads}
    return tuple(
        Role(role.doubtful) if role.doubtful and {r.x for r in role.doubtful} <= inputs else role
        for role in operands
    )


def _said(roles: dict[str, Role], *, settled: bool) -> tuple[str, ...]:
    return tuple(f"{n}: {r.why}" for n, r in roles.items() if r.why and r.settled is settled)


def _operand(operand: fx.Node, output: frozenset[LinearRead], core: Core, flow: Flow) -> Role:
    if operand in flow.learned - flow.active:
        return Role(why="not projected: it is learned as it is", settled=True)
    origins = flow.origins(operand)
    if not origins.reads:
        origins = flow.origins(operand, through_activations=True)
    if not origins.reads:
        return _unprojected(origins.blockers, flow)
    if origins.residual:
        return Role(why="not projected: a residual stream feeds it as it is", settled=True)
    for read in origins.reads:
        if _belongs_elsewhere(read, output, core, flow):
            why = f"not projected: {read.weight} behind it also feeds other layers"
            return Role(why=why, doubtful=origins.reads)
    return Role(origins.reads)


def _unprojected(blockers: frozenset[fx.Node], flow: Flow) -> Role:
    """A convolution, an attention, an input or a constant behind an operand leaves nothing to look for."""
    names = sorted({op_name(node) for node in blockers})
    if _stack_behind(blockers, flow):
        return Role(why="stacked weights are behind it", settled=True)
    settled = all(name in _ENDS for name in names)
    return Role(
        why=f"no linear behind it, it is made by {', '.join(names) or 'constants'}", settled=settled
    )


def _stack_behind(blockers: frozenset[fx.Node], flow: Flow) -> bool:
    """Whether experts make it (JetMoE's queries): a walk back that no plain linear stops."""
    seen, stack = set(blockers), list(blockers)
    while stack:
        node = stack.pop()
        if _reads_a_stack(node, flow):
            return True
        new = [s for s in node.all_input_nodes if s in flow.active and s not in flow.reader.by_node]
        stack += [s for s in new if s not in seen]
        seen.update(new)
    return False


_ENDS = CONVOLUTIONS | ATTENTIONS | {"placeholder", "embedding"}


def _belongs_elsewhere(
    read: LinearRead, output: frozenset[LinearRead], core: Core, flow: Flow
) -> bool:
    """A projection feeds attention; a linear of the residual stream feeds other linears too."""
    others = _fed(read, flow) - output
    if not others:
        return False
    first = flow.graph.order[read.node]
    operands = [core.query, core.key, core.value]
    behind = flow.behind(operands, first)
    scores = flow.behind([core.node], first) - behind
    return not all(
        other.node in scores
        or (other.node not in behind and _joins(other, output, flow))
        or _has_rows_apart(read, operands, other, flow)
        for other in others
    )


def _fed(read: LinearRead, flow: Flow) -> frozenset[LinearRead]:
    """The linear reads after ``read``, not going through attention."""
    reads = flow.ends

    def stops(node: fx.Node) -> bool:
        return node in reads or op_name(node) in ATTENTIONS or is_product(node, flow)

    reached = flow.forward(read.node, until=stops)
    return frozenset(reads[n] for n in reached if n in reads and n is not read.node)


def _has_rows_apart(
    read: LinearRead, operands: list[fx.Node], other: LinearRead, flow: Flow
) -> bool:
    """Some rows go to an operand, the others into a further projection (latent attention) or a feed-forward."""
    fed = [operand for operand in operands if read in flow.origins(operand).reads]
    *direct, further = rows_reaching(read, [*fed, other.x], flow)
    apart = set(indices(further))
    return all(apart.isdisjoint(indices(rows)) for rows in direct)


def _joins(other: LinearRead, output: frozenset[LinearRead], flow: Flow) -> bool:
    """A branch beside the attention that comes back before the output projection."""
    after = flow.next_reads(other.node)
    return bool(after) and after <= output


def _output(core: Core, flow: Flow) -> Role:
    """The first linear reads after the result, not crossing a sum with another branch."""
    own = frozenset[LinearRead]().union(
        *(flow.origins(operand).reads for operand in (core.query, core.key, core.value))
    )
    found: set[LinearRead] = set()
    ends: list[fx.Node] = []
    seen, carried, stack = {core.result}, {core.result}, [core.result]
    while stack:
        for user in stack.pop().users:
            if user in seen:
                continue
            seen.add(user)
            read = flow.reader.by_node.get(user)
            if read is not None:
                found.add(read)
            elif _carries_output(user, seen, own, flow):
                stack.append(user)
                carried.add(user)
            elif is_tensor(user) or user.op == "output":
                ends.append(user)
        if not stack:  # what is added may be made of the result, too: y - (y v) v
            stack = [node for node in ends if _carries_output(node, carried, own, flow)]
            carried.update(stack)
            ends = [node for node in ends if node not in carried]
    if found:
        return Role(frozenset(found))
    names = {"stacked weights" if _reads_a_stack(n, flow) else op_name(n) for n in ends}
    known = _ENDS | {"output", "add", "cat", "where", "stacked weights"}
    return Role(
        why=f"no linear follows, the result goes into {', '.join(sorted(names)) or 'nothing'}",
        settled=names <= known,
    )


def _reads_a_stack(node: fx.Node, flow: Flow) -> bool:
    """A product with one of many matrices, or with all of them, of which no role can name the rows."""
    factors = node.args[:2] if op_name(node) == "linear" else product_operands(node)
    return op_name(node) in PRODUCTS | {"linear"} and any(
        isinstance(factor, fx.Node) and shows_a_stack(factor, flow) for factor in factors
    )


def _carries_output(
    node: fx.Node, seen: set[fx.Node], own: frozenset[LinearRead], flow: Flow
) -> bool:
    name = op_name(node)
    if flow.multiplies_a_constant(node):
        return True
    if name not in MOVES and name not in SCALES and name not in ACTIVATIONS:
        return False
    if not adds(node) or name in {"cat", "concat", "stack"}:
        return True
    others = [s for s in node.all_input_nodes if s in flow.active and s not in seen]
    return all(_from_own_reads(other, own, flow) for other in others)


def _from_own_reads(node: fx.Node, own: frozenset[LinearRead], flow: Flow) -> bool:
    """Whether a summand is made of the site's own projections, or by another attention that is (DIFF)."""
    origins = flow.origins(node)
    if not all(op_name(blocker) in ATTENTIONS | PRODUCTS for blocker in origins.blockers):
        return False
    behind = [_from_own_reads(s, own, flow) for b in origins.blockers for s in _factors(b, flow)]
    return all(behind) and origins.reads <= own and bool(origins.reads or behind)


def _factors(node: fx.Node, flow: Flow) -> list[fx.Node]:
    """What an attention, or a part of one, is computed from; masks apart."""
    sources = product_operands(node) if op_name(node) in PRODUCTS else node.args[:3]
    return [s for s in sources if isinstance(s, fx.Node) and s in flow.active]
