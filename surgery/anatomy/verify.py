"""Proof by behaviour: disturb the claimed rows, and see that exactly that operand of that site moves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from policies.roles import Role
from surgery.anatomy.capture import unchanged
from surgery.anatomy.inputs import ExampleInputs, example_inputs
from surgery.anatomy.runtime import Event, watch
from surgery.anatomy.types import Anatomy, AttentionSite, Layout, Projection
from surgery.anatomy.wrappers import unwrap
from surgery.errors import AnatomyError

_OPERANDS = {Role.QUERY: "query", Role.KEY: "key", Role.VALUE: "value"}


@dataclass(frozen=True)
class Finding:
    """What happened when the rows of one projection were disturbed.

    Attributes:
        site: The site it was claimed for.
        projection: What was disturbed.
        moved: The operands that moved at the first attention that changed.
        event: Number of that attention in run order, or None if none changed.
        proved: Whether that is what the claim says.
    """

    site: str
    projection: Projection
    moved: tuple[str, ...]
    event: int | None
    proved: bool


@dataclass(frozen=True)
class Verification:
    """The outcome of :func:`verify`.

    Attributes:
        run: Attention computations counted while the model ran, an independent count.
        read: Attention computations that the anatomy claims (sites times their calls).
        findings: One entry for each projection of each site.
    """

    run: int
    read: int
    findings: tuple[Finding, ...]

    @property
    def proved(self) -> bool:
        """Whether every claim was seen to hold and no attention ran that was not read."""
        return self.run == self.read and all(f.proved for f in self.findings)

    @property
    def refuted(self) -> tuple[Finding, ...]:
        """The claims that were seen not to hold."""
        return tuple(f for f in self.findings if not f.proved)

    def to_dict(self) -> dict[str, Any]:
        """Counts and refuted claims as plain data."""
        return {
            "run": self.run,
            "read": self.read,
            "claims": len(self.findings),
            "proved": self.proved,
            "refuted": [
                {"site": f.site, "role": str(f.projection.role), "weight": f.projection.weight_name,
                 "moved": list(f.moved), "event": f.event}
                for f in self.refuted
            ],
        }  # fmt: skip

    def __rich__(self) -> Table:
        held = len(self.findings) - len(self.refuted)
        title = (
            f"{self.run} attentions ran, {self.read} were read; {held} of {len(self.findings)} "
            "claims seen to hold"
        )
        table = Table("site", "role", "weight", "moved instead", title=title, title_justify="left")
        for f in self.refuted:
            moved = ", ".join(f.moved) or "nothing"
            table.add_row(f.site, str(f.projection.role), f.projection.weight_name, moved)
        return table


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
    """
    model = unwrap(model)
    if any(p.is_meta for p in model.parameters()):
        raise AnatomyError(
            "a model on the meta device cannot be verified",
            why="verification runs the model",
            remedy="materialise it first: model.to_empty(device='cpu') and load weights",
        )
    made = example_inputs(model, inputs)
    with unchanged(model):
        return _Experiment(model, anatomy, made).run()


class _Experiment:
    def __init__(self, model: nn.Module, anatomy: Anatomy, inputs: ExampleInputs) -> None:
        self.model, self.anatomy, self.inputs = model, anatomy, inputs
        self.baseline = watch(self._call)

    def run(self) -> Verification:
        sites = self.anatomy.sites
        read = sum(site.calls for site in sites)
        findings = [
            self._finding(site, projection) for site in sites for projection in site.projections
        ]
        return Verification(len(self.baseline), read, tuple(findings))

    def _call(self) -> None:
        self.model(*self.inputs.args, **self.inputs.kwargs)

    def _finding(self, site: AttentionSite, projection: Projection) -> Finding:
        own = site.first_run
        with disturbed(self.model, projection):
            events = watch(self._call, stop_after=own + 2)
        event, moved = _first_change(self.baseline, events)
        if projection.role is Role.ATTENTION_OUTPUT:
            proved = event is None or event > own
        else:
            proved = event == own and moved == (_OPERANDS[projection.role],)
        return Finding(site.id, projection, moved, event, proved)


@contextmanager
def disturbed(model: nn.Module, projection: Projection) -> Iterator[None]:
    """Scale and shift the rows of a projection inside the context; afterwards every bit is back."""
    owner = model.get_submodule(projection.module)
    weight = getattr(owner, projection.parameter)
    kept = weight.detach().clone()
    channels = torch.tensor(
        [c for run in projection.rows for c in range(*run)], device=weight.device
    )
    dim = 1 if projection.layout is Layout.IN_OUT else 0
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        rows = weight.index_select(dim, channels)
        spread = kept.float().std().clamp_min(1e-3).item()
        noise = torch.randn(rows.shape, generator=generator).to(weight) * 3 * spread
        weight.index_copy_(dim, channels, rows + noise)
        try:
            yield
        finally:
            weight.copy_(kept)


def _first_change(before: list[Event], after: list[Event]) -> tuple[int | None, tuple[str, ...]]:
    for number, (old, new) in enumerate(zip(before, after, strict=False)):
        moved = tuple(
            name
            for name in ("query", "key", "value")
            if not _same(getattr(old, name), getattr(new, name))
        )
        if moved:
            return number, moved
    return None, ()


def _same(old: Tensor, new: Tensor) -> bool:
    return old.shape == new.shape and bool(torch.equal(old.nan_to_num(), new.nan_to_num()))
