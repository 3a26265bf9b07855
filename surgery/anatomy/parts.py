"""Parts of a model: which kind of input reaches a computation, and on which side of cross-attention it is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property

from torch import Tensor, fx

from policies.parts import Part
from surgery.anatomy.flow import Flow
from surgery.anatomy.graph import backward, op_name, shape_of
from surgery.anatomy.linears import LinearRead
from surgery.anatomy.operators import MOVES
from surgery.anatomy.sites import SiteReads

_NAMED = {"pixel_values": Part.VISION, "input_features": Part.AUDIO, "input_values": Part.AUDIO}
"""Arguments whose values come in so many shapes that these tell nothing."""
_TO_TOKENS = MOVES | {"where", "masked_fill", "clamp", "clamp_min", "clamp_max"}


class Parts:
    """Tells the parts that a site, a block or a linear belongs to.

    *Towers* are told by the inputs that reach them: tokens, images, sound. *Encoder and decoder* are
    told by cross-attention, where the queries and the keys have different attentions behind them: what
    the keys are made from is the encoder, what the queries come from and what follows is the decoder. A
    site or a block is asked as a whole: the keys of a decoder's cross-attention come from the encoder
    and are still the decoder's.

    Args:
        flow: The walks over the graph.
        sites: Its attention sites, in graph order.
    """

    def __init__(self, flow: Flow, sites: Iterable[SiteReads]) -> None:
        self.flow, self.sites = flow, tuple(sites)

    def by_weight(self, groups: Iterable[Iterable[LinearRead]]) -> dict[str, tuple[str, ...]]:
        """The parts of each weight; empty where the model has but one part.

        Args:
            groups: The reads of each site and block, and each read alone. A weight lies in the parts
                of all the groups that read it.
        """
        together: dict[str, set[fx.Node]] = defaultdict(set)
        for group in groups:
            reads = list(group)
            for read in reads:
                together[read.weight] |= {other.node for other in reads}
        return {weight: self._of(nodes) for weight, nodes in together.items()}

    def _of(self, nodes: set[fx.Node]) -> tuple[str, ...]:
        found = [*self._tower(nodes), *self._side(nodes)]
        return tuple(str(part) for part in found)

    def _tower(self, nodes: set[fx.Node]) -> Iterable[Part]:
        if len(set(self._inputs.values())) < 2:
            return
        kinds = frozenset[Part]().union(*(self._kinds.get(node, frozenset()) for node in nodes))
        if Part.TEXT in kinds:
            yield Part.TEXT
        elif len(kinds) == 1:
            yield from kinds

    def _side(self, nodes: set[fx.Node]) -> Iterable[Part]:
        encoder, decoder = self._sides
        if encoder and encoder.issuperset(nodes):
            yield Part.ENCODER
        elif not decoder.isdisjoint(nodes):
            yield Part.DECODER

    @cached_property
    def _inputs(self) -> dict[fx.Node, Part]:
        return {node: kind for node in self.flow.graph.inputs if (kind := _kind_of(node))}

    @cached_property
    def _kinds(self) -> dict[fx.Node, frozenset[Part]]:
        """The kinds of input that each node is made from."""
        found = {node: frozenset({kind}) for node, kind in self._inputs.items()}
        for node in self.flow.graph.nodes:
            sources = [found[source] for source in node.all_input_nodes if source in found]
            if sources:
                found[node] = frozenset[Part]().union(*sources)
        return found

    @cached_property
    def _histories(self) -> dict[fx.Node, int]:
        """The attentions behind each node, one bit for each."""
        return self.flow.graph.histories([site.core.result for site in self.sites])

    @cached_property
    def _crossing(self) -> tuple[SiteReads, ...]:
        seen: set[LinearRead] = set()
        found = []
        for site in self.sites:
            # Later layers that use the keys of an earlier one again (Gemma 3n) look at no encoder.
            own = site.query and site.key and seen.isdisjoint(site.key)
            if own and self._behind(site.query) != self._behind(site.key):
                found.append(site)
            seen |= site.key
        return tuple(found)

    def _behind(self, reads: Iterable[LinearRead]) -> int:
        bits = 0
        for read in reads:
            bits |= self._histories.get(read.x, 0)
        return bits

    @cached_property
    def _sides(self) -> tuple[frozenset[fx.Node], frozenset[fx.Node]]:
        """The nodes of the encoder and those of the decoder; both empty if the model has no two such sides.

        Branches that look at each other have no sides, and a pooling by a learned query is no decoder.
        """
        results = {site.core.result for site in self._crossing}
        encoder = frozenset(backward([read.x for site in self._crossing for read in site.key]))
        around = self.flow.graph.descendants(results) | frozenset(backward(list(results)))
        decoder = around - encoder
        attends = {site.core.result for site in self.sites} & decoder - results
        return (encoder, decoder) if attends and results <= decoder else (frozenset(), frozenset())


def _kind_of(node: fx.Node) -> Part | None:
    """What an input shows: tokens are looked up in a table, images have rows and columns."""
    named = next((kind for name, kind in _NAMED.items() if node.name.startswith(name)), None)
    value = node.meta.get("val")
    if named or not isinstance(value, Tensor):
        return named
    if not value.is_floating_point():
        return Part.TEXT if _is_looked_up(node) else None
    return Part.VISION if len(shape_of(node)) in (4, 5) else None


def _is_looked_up(node: fx.Node) -> bool:
    seen, stack = {node}, [node]
    while stack:
        current = stack.pop()
        for user in current.users:
            if op_name(user) == "embedding":
                return True
            if user not in seen and op_name(user) in _TO_TOKENS:
                seen.add(user)
                stack.append(user)
    return False
