"""Proof by behaviour: disturb the claimed rows, and see that exactly that operand of that site moves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from rich.text import Text
from torch import nn

from policies.roles import Role
from surgery.anatomy.buffers import kept_buffers
from surgery.anatomy.capture import unchanged
from surgery.anatomy.disturb import disturbed, targets
from surgery.anatomy.idle import idle_attentions
from surgery.anatomy.inputs import ExampleInputs, example_inputs
from surgery.anatomy.render import as_text
from surgery.anatomy.replay import Replay
from surgery.anatomy.types import Anatomy, AttentionSite, Projection, indices
from surgery.anatomy.wrappers import refuse_inference_tensors, unwrap
from surgery.errors import AnatomyError

_OPERANDS = {Role.QUERY: "query", Role.KEY: "key", Role.VALUE: "value"}


@dataclass(frozen=True)
class Finding:
    """What happened when the rows of one projection were disturbed.

    Attributes:
        site: The site it was claimed for.
        projection: What was disturbed.
        moved: The operands that moved at the first attention that changed.
        event: Number of that attention in run order, idle ones apart, or None if none changed.
        proved: Whether that is what the claim says.
        unseen: Whether nothing moved at all, so that the run says neither yes nor no.
    """

    site: str
    projection: Projection
    moved: tuple[str, ...]
    event: int | None
    proved: bool
    unseen: bool = False


@dataclass(frozen=True)
class Verification:
    """The outcome of :func:`verify`.

    Attributes:
        run: Attention computations counted while the model ran, an independent count.
        read: Attention computations that the anatomy claims (sites times their calls).
        findings: One entry for each projection of each site.
        idle: How many of those that ran do so for nothing: no output depends on what they give.
    """

    run: int
    read: int
    findings: tuple[Finding, ...]
    idle: int = 0

    @property
    def proved(self) -> bool:
        """Whether every claim was seen to hold and no attention ran for an output that was not read."""
        return self.run - self.idle == self.read and all(f.proved for f in self.findings)

    @property
    def refuted(self) -> tuple[Finding, ...]:
        """The claims that were seen not to hold."""
        return tuple(f for f in self.findings if not f.proved and not f.unseen)

    @property
    def unseen(self) -> tuple[Finding, ...]:
        """The claims of which nothing was seen: what they were disturbed by moved nothing."""
        return tuple(f for f in self.findings if f.unseen)

    def to_dict(self) -> dict[str, Any]:
        """Counts and refuted claims as plain data."""
        return {
            "run": self.run,
            "read": self.read,
            "idle": self.idle,
            "claims": len(self.findings),
            "proved": self.proved,
            "unseen": len(self.unseen),
            "refuted": [
                {"site": f.site, "role": str(f.projection.role), "weight": f.projection.weight_name,
                 "moved": list(f.moved), "event": f.event}
                for f in self.refuted
            ],
        }  # fmt: skip

    def __rich__(self) -> Table | Text:
        held = sum(finding.proved for finding in self.findings)
        title = (
            f"{self.run} attentions ran{f' ({self.idle} for nothing)' if self.idle else ''}, "
            f"{self.read} were read; {held} of {len(self.findings)} claims seen to hold"
        )
        if not self.refuted:
            return Text(title)
        table = Table("site", "role", "weight", "moved instead", title=title, title_justify="left")
        for f in self.refuted:
            moved = ", ".join(f.moved) or "nothing"
            table.add_row(f.site, str(f.projection.role), f.projection.weight_name, moved)
        return table

    def __str__(self) -> str:
        return as_text(self)


def verify(model: nn.Module, anatomy: Anatomy, inputs: Any = None) -> Verification:
    """Measure, by running the model, whether the anatomy's claims about attention are true.

    For each claimed projection its rows are disturbed (and put back, bit for bit): query rows must
    move the query of their own site first, and neither its key nor its value; an output
    projection must move nothing inside its own site. The model runs as the user runs it, without any graph.

    Args:
        model: The model the anatomy was read from, with real (not meta) weights.
        anatomy: What :func:`surgery.read` returned for it.
        inputs: Example inputs; None makes them as for reading.

    Raises:
        AnatomyError: If the model's weights are on the meta device.
        StateError: If the model is wrapped, or was made under ``torch.inference_mode``.
    """
    model = unwrap(model)
    refuse_inference_tensors(model)
    if any(p.is_meta for p in model.parameters()):
        raise AnatomyError(
            "a model on the meta device cannot be verified",
            why="verification runs the model",
            remedy="materialise it first: model.to_empty(device='cpu') and load weights",
        )
    made = example_inputs(model, inputs)
    with torch.inference_mode(False), unchanged(model):
        return _Experiment(model, anatomy, made).run()


class _Experiment:
    def __init__(self, model: nn.Module, anatomy: Anatomy, inputs: ExampleInputs) -> None:
        self.model, self.anatomy, self.inputs = model, anatomy, inputs
        self.replay = Replay(model, self._call)
        self.baseline = self.replay.events
        self.place = {site.id: site.first_run for site in anatomy.sites}
        self.idle: frozenset[int] = frozenset()

    def run(self) -> Verification:
        sites, run = self.anatomy.sites, len(self.baseline)
        read = sum(site.calls for site in sites)
        if read < run:
            self.idle = frozenset(idle_attentions(self._call, range(run)))
        if read != run - len(self.idle):
            self.place = {site.id: self._place(site) for site in sites}
        findings = [finding for site in sites for finding in self._findings(site)]
        return Verification(run, read, tuple(findings), len(self.idle))

    def _call(self) -> object:
        with kept_buffers(self.model):
            return self.model(*self.inputs.args, **self.inputs.kwargs)

    def _events(self, number: int) -> int:
        """How many attentions have run when ``number`` of those that are not idle have."""
        busy = [n for n in range(len(self.baseline)) if n not in self.idle]
        return busy[number - 1] + 1 if 0 < number <= len(busy) else len(self.baseline) + 1

    def _place(self, site: AttentionSite) -> int:
        """The number of a site's first run where other attentions ran that were not read.

        It is where its first operand moves something first; all its claims must agree on that.
        """
        for projection in site.projections:
            if projection.role in _OPERANDS:
                changes = self._changes(projection, 0, len(self.baseline))
                return next((n for n, moved in enumerate(changes) if moved), site.first_run)
        return site.first_run

    def _changes(self, projection: Projection, start: int, stop: int) -> list[tuple[str, ...]]:
        with disturbed(self.model, projection):
            events = self.replay.run(start, stop_after=self._events(stop))
        pairs = enumerate(zip(self.baseline, events, strict=False))
        return [old.moved(new) for n, (old, new) in pairs if n not in self.idle]

    def _findings(self, site: AttentionSite) -> list[Finding]:
        """Of one site, all from one step: its control run speaks for each of them."""
        weights = [w for p in site.projections for w, _ in targets(self.model, p)]
        start = self.replay.start(weights, stop_after=self._events(self.place[site.id] + 2))
        return [self._finding(site, projection, start) for projection in site.projections]

    def _finding(self, site: AttentionSite, projection: Projection, start: int) -> Finding:
        own = self.place[site.id]
        changes = self._changes(projection, start, own + 2)
        event, moved = next(((n, m) for n, m in enumerate(changes) if m), (None, ()))
        if projection.role is Role.ATTENTION_OUTPUT:
            unseen = event is None and own >= len(changes)
            holds = not unseen and (event is None or event > own)
            return Finding(site.id, projection, moved, event, holds, unseen)
        claims = self._claims(projection)
        # Where the rows serve an earlier attention, too, its result may move what lies between.
        seen = set(changes[own]) if own < len(changes) else set()
        proved = event == min(claims) and set(moved) == claims[event] and claims[own] <= seen
        return Finding(site.id, projection, moved, event, proved, unseen=event is None)

    def _claims(self, projection: Projection) -> dict[int, set[str]]:
        """What the anatomy says these rows move: operands by run number.

        Rows may serve as key and value (DeepSeek-V4), or two attentions of one layer (DIFF Transformer).
        """
        claimed: dict[int, set[str]] = {}
        for site in self.anatomy.sites:
            for other in site.projections:
                if other.role in _OPERANDS and _overlap(other, projection):
                    claimed.setdefault(self.place[site.id], set()).add(_OPERANDS[other.role])
        return claimed


def _overlap(one: Projection, two: Projection) -> bool:
    if one.weight_name != two.weight_name:
        return False
    return not set(indices(one.rows)).isdisjoint(indices(two.rows))
