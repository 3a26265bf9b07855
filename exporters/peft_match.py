"""Which projection of a model each module of a PEFT checkpoint means: by its name, else by structure."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from exporters.peft_checkpoint import PeftCheckpoint, read_peft
from exporters.peft_names import pattern
from exporters.peft_structure import Structure
from surgery.anatomy.read import read
from surgery.anatomy.render import as_text
from surgery.anatomy.types import Access, Anatomy, Projection, indices
from surgery.operations.by_name import anatomy_by_name
from surgery.operations.state import plain_model

if TYPE_CHECKING:
    from rich.table import Table

Names = Mapping[str, str]
"""Module of the model by module of the checkpoint."""


@dataclass(frozen=True)
class Match:
    """One module of a checkpoint, and the projection of the model that it adapts."""

    theirs: str
    projection: Projection
    by: Literal["name", "structure", "names="]


@dataclass(frozen=True)
class PeftMatch:
    """A checkpoint laid on a model; nothing has been changed yet.

    Attributes:
        matches: In the order of the checkpoint.
        rest: Parameter of the model by name in the checkpoint, for what was saved besides.
    """

    matches: tuple[Match, ...]
    rest: dict[str, str]

    @property
    def notes(self) -> tuple[str, ...]:
        """What was not found under its own name, one line for all layers."""
        found: Counter[str] = Counter()
        for match in self.matches:
            if match.by != "name":
                p = match.projection
                to = f"{pattern(p.module)} ({p.role})"
                found[f"{pattern(match.theirs)} -> {to} by {match.by}"] += 1
        renamed = (f"{theirs} -> {ours}" for theirs, ours in self.rest.items() if theirs != ours)
        return (*(f"{line}, {count} in all" for line, count in found.items()), *renamed)

    def to_dict(self) -> dict[str, Any]:
        """``{"matches": [{"theirs", "module", "role", "layer", "rows", "by"}], "rest": {theirs: ours}}``."""
        rows = [
            {
                "theirs": match.theirs,
                "module": match.projection.module,
                "role": str(match.projection.role),
                "layer": match.projection.layer,
                "rows": [list(run) for run in match.projection.rows],
                "by": match.by,
            }
            for match in self.matches
        ]
        return {"matches": rows, "rest": dict(self.rest)}

    def __rich__(self) -> Table:
        from rich.table import Table

        table = Table("checkpoint", "model", "role", "layer", "matched by")
        for match in self.matches:
            p = match.projection
            layer = "-" if p.layer is None else str(p.layer)
            table.add_row(match.theirs, p.module, str(p.role), layer, match.by)
        for theirs, ours in self.rest.items():
            table.add_row(theirs, ours, "", "", "name" if theirs == ours else "structure")
        return table

    def __str__(self) -> str:
        return as_text(self)


def match_peft(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    names: Names | None = None,
    anatomy: Anatomy | None = None,
    example_inputs: Any = None,
) -> PeftMatch:
    """Say which projection each module of a PEFT checkpoint means. Nothing is changed.

    Arguments and errors are those of :func:`exporters.from_peft`.
    """
    return match(plain_model(model), read_peft(folder), names or {}, anatomy, example_inputs)


def match(
    model: nn.Module, checkpoint: PeftCheckpoint, names: Names, anatomy: Anatomy | None, inputs: Any
) -> PeftMatch:
    """Every module is found once, by name or by structure, or the checkpoint is refused."""
    known = {p.module: replace(p, access=Access.MODULE) for p in anatomy_by_name(model).others}
    found = _by_name(checkpoint, known, names)
    rest = _rest_by_name(model, checkpoint)
    missing = [module for module in checkpoint.factors if module not in found]
    if missing or None in rest.values():
        structure = Structure(anatomy or _read(model, checkpoint, missing, known, inputs), known)
        found |= {
            m: Match(m, p, "structure") for m, p in structure.find(checkpoint, missing).items()
        }
        rest |= structure.find_rest(model, checkpoint, [n for n, ours in rest.items() if not ours])
    matches = tuple(found[module] for module in checkpoint.factors)
    _check_once(checkpoint, matches)
    return PeftMatch(matches, {theirs: ours for theirs, ours in rest.items() if ours})


def _by_name(
    checkpoint: PeftCheckpoint, known: Mapping[str, Projection], names: Names
) -> dict[str, Match]:
    found = {}
    for module in checkpoint.factors:
        name = names.get(module, module)
        if name not in known:
            if module in names:
                raise _unknown(checkpoint, name, known)
            continue
        p, shape = known[name], checkpoint.shape(module)
        if shape != (p.out_features, p.in_features):
            why = f"its update is {shape}, the layer is {(p.out_features, p.in_features)}"
            raise checkpoint.misfit(module, why, "load onto the base model it was trained on")
        found[module] = Match(module, p, "names=" if module in names else "name")
    return found


def _rest_by_name(model: nn.Module, checkpoint: PeftCheckpoint) -> dict[str, str | None]:
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        name: name if name in own and own[name].shape == value.shape else None
        for name, value in checkpoint.rest.items()
    }


def _read(
    model: nn.Module,
    checkpoint: PeftCheckpoint,
    missing: list[str],
    known: Mapping[str, Projection],
    inputs: Any,
) -> Anatomy:
    """The graph; where there is none, the names are all there was."""
    from surgery.errors import CaptureError

    try:
        return read(model, inputs)
    except CaptureError as error:
        if not missing:
            return anatomy_by_name(model)
        raise _unknown(checkpoint, missing[0], known) from error


def _unknown(checkpoint: PeftCheckpoint, name: str, known: Iterable[str]) -> Exception:
    near = get_close_matches(name, list(known), 1, 0)
    why = f"it has no linear layer of that name; the nearest is {near[0] if near else 'none'}"
    return checkpoint.misfit(name, why, "pass names={checkpoint module: model module}")


def _check_once(checkpoint: PeftCheckpoint, matches: Iterable[Match]) -> None:
    """No projection twice, and no slice of a weight that is adapted as a whole."""
    taken: dict[str, list[Match]] = defaultdict(list)
    for entry in matches:
        taken[entry.projection.weight_name].append(entry)
    for weight, entries in taken.items():
        rows = [channel for e in entries for channel in indices(e.projection.rows)]
        if len(rows) != len(set(rows)):
            both = " and ".join(e.theirs for e in entries)
            remedy = "pass names={checkpoint module: model module} for one of them"
            raise checkpoint.misfit(both, f"they would both adapt {weight}", remedy)
