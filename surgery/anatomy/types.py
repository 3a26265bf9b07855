"""What was read from a model: plain, immutable data without tensors or graph nodes."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from rich.console import Group

from policies.roles import Role
from surgery.anatomy import render

Rows = tuple[tuple[int, int, int], ...]
"""Output channels of a weight as ``(start, stop, step)`` runs, in the order of Python's ``range``."""


def indices(rows: Rows) -> list[int]:
    """Every channel of ``rows``, in order."""
    return [channel for run in rows for channel in range(*run)]


def run(channels: range) -> tuple[int, int, int]:
    """A range as one run of :data:`Rows`."""
    return channels.start, channels.stop, channels.step


class Access(StrEnum):
    """How the graph reads a weight."""

    MODULE = "module"
    """Through the forward of the module that owns it, and in no other way."""
    PARAMETER = "parameter"
    """By the parameter, if only for a penalty beside the module's own product: a wrapper would be dead, or only half
    of what reads the weight would see it."""


class Layout(StrEnum):
    """Where a weight keeps its output channels."""

    OUT_IN = "out_in"
    """``(out, in)``: ``nn.Linear``, ``F.linear``."""
    IN_OUT = "in_out"
    """``(in, out)``: transformers' ``Conv1D``, ``x @ W``."""
    CONV = "conv"
    """``(out, in, 1)`` or ``(out, in, 1, 1)``: 1x1 convolutions."""


@dataclass(frozen=True)
class Projection:
    """One role's share of one weight.

    Attributes:
        role: What it does.
        module: Path of the module that owns the weight ("" for the root).
        parameter: Name of the weight in that module.
        rows: The output channels that belong to this role.
        in_features: Input channels.
        out_features: Number of output channels in ``rows``.
        weight_out_features: Output channels of the whole weight.
        layout: Where the weight keeps its output channels.
        access: How the graph reads the weight.
        layer: Depth of the block it sits in, from 0, or None outside any block.
        calls: How often the graph applies it (12 for ALBERT's shared layer).
        tied_to: Other names of the same tensor ("embed.weight"), empty if none.
        bias: Whether the graph adds a bias after it.
        reaches_output: Whether a path leads from it to an output of the model that a gradient can come back
            (none comes through ``detach`` or out of ``torch.no_grad``).
        module_type: Qualified class name of the owner.
        parts: The parts of the model it lies in (``vision``, ``text``, ``audio``, ``encoder``,
            ``decoder``, see :class:`policies.Part`); empty where the model is one piece.
    """

    role: Role
    module: str
    parameter: str
    rows: Rows
    in_features: int
    out_features: int
    weight_out_features: int
    layout: Layout = Layout.OUT_IN
    access: Access = Access.MODULE
    layer: int | None = None
    calls: int = 1
    tied_to: tuple[str, ...] = ()
    bias: bool = False
    reaches_output: bool = True
    module_type: str = ""
    parts: tuple[str, ...] = ()

    @property
    def weight_name(self) -> str:
        """State-dict key of the weight."""
        return f"{self.module}.{self.parameter}" if self.module else self.parameter

    @property
    def whole(self) -> bool:
        """Whether the role owns every output channel of the weight."""
        return self.rows == ((0, self.weight_out_features, 1),)


@dataclass(frozen=True)
class AttentionSite:
    """One attention computation of the graph (applied ``calls`` times if its weights are shared).

    Attributes:
        id: Stable name within the anatomy, ``attention.0`` and so on, in graph order.
        kind: ``sdpa`` (a scaled-dot-product node), ``softmax`` (between two products), ``flex`` (flex attention) or
            ``linear`` (linear attention).
        layer: Depth of the block, or None.
        module: Path of the module whose forward computes the attention.
        projections: Query, key, value and output, as far as they were found.
        calls: How often the graph runs it.
        first_run: Its place among all attention computations of one forward, from 0.
        notes: What a reader should know (talking heads, cross attention, a missing role and why).
    """

    id: str
    kind: str
    layer: int | None
    module: str
    projections: tuple[Projection, ...]
    calls: int = 1
    first_run: int = 0
    notes: tuple[str, ...] = ()

    def role(self, role: Role) -> tuple[Projection, ...]:
        """The projections of this site that play ``role``."""
        return tuple(p for p in self.projections if p.role is role)


@dataclass(frozen=True)
class FeedForward:
    """One feed-forward block: up (and gate) into an activation, down out of it."""

    id: str
    layer: int | None
    projections: tuple[Projection, ...]


@dataclass(frozen=True)
class Unplaced:
    """Something that was seen and could not be resolved: an attention, a role of one, a stack of weights.

    A partial reading is never passed off as whole.
    """

    what: str
    where: str
    why: str


@dataclass(frozen=True)
class Anatomy:
    """What was read from a model's graph. It never changes the model.

    Attributes:
        model: Qualified class name of the model.
        sites: Attention sites in graph order.
        feed_forward: Feed-forward blocks in graph order.
        others: The head, and every other linear projection (role ``head`` or ``other``).
        unplaced: What was seen but not resolved, with the reason.
        depth: Number of blocks that ``layer`` counts.
        embeddings: Rows of each embedding table the graph looks up.
        inputs: Shape and dtype of each example input that was used, by name.
        values: For which values of inputs of these shapes the reading holds: ``"any"``, these ``"integers"``
            (token ids, masks, grids), or ``"all"``, exactly this call.
    """

    model: str
    sites: tuple[AttentionSite, ...]
    feed_forward: tuple[FeedForward, ...]
    others: tuple[Projection, ...]
    unplaced: tuple[Unplaced, ...] = ()
    depth: int = 0
    embeddings: tuple[int, ...] = ()
    inputs: dict[str, str] = field(default_factory=dict)
    values: str = "any"

    @property
    def projections(self) -> tuple[Projection, ...]:
        """Every projection once, attention first, then feed-forward, then the rest."""
        groups: tuple[AttentionSite | FeedForward, ...] = (*self.sites, *self.feed_forward)
        everything = [p for group in groups for p in group.projections]
        return tuple(dict.fromkeys((*everything, *self.others)))

    def to_dict(self) -> dict[str, Any]:
        """The anatomy as plain data with stable keys, see :func:`surgery.anatomy.render.as_dict`."""
        return render.as_dict(self)

    def __rich__(self) -> Group:
        return render.as_table(self)

    def __str__(self) -> str:
        return render.as_text(self, width=110)
