"""``surgery inspect``, ``plan`` and ``verify``: look, and touch nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group

from surgery.cli.failures import FAILED
from surgery.cli.models import Source
from surgery.cli.options import (
    Checkpoint,
    InputShapes,
    Meta,
    ModelName,
    Pretrained,
    Settings,
    example_inputs,
)
from surgery.cli.output import Json, emit, note, working
from surgery.errors import SurgeryError

if TYPE_CHECKING:
    from surgery import Anatomy, Plan


def inspect(
    model: ModelName,
    verify: Annotated[
        bool, typer.Option("--verify", help="Prove it by running the model.")
    ] = False,
    html: Annotated[Path | None, typer.Option(help="Draw it into this file.")] = None,
    policy: Annotated[
        str | None, typer.Option("--policy", "-p", help="Colour what it adapts in the drawing.")
    ] = None,
    settings: Settings = None,
    inputs: InputShapes = None,
    pretrained: Pretrained = None,
    checkpoint: Checkpoint = None,
    meta: Meta = False,
    as_json: Json = False,
) -> None:
    """Print a model's anatomy: who is query, key and value, and which rows of which weight.

    Example: surgery inspect timm:vit_tiny_patch16_224 --html model.html --policy vit-attn-qv
    """
    if verify and meta:
        raise typer.BadParameter("--verify runs the model, --meta leaves it without weights")
    if policy and not html:
        raise typer.BadParameter("--policy colours the drawing of --html; see also: surgery plan")
    import surgery

    built = Source.parse(model, settings, pretrained, checkpoint).build(meta=meta)
    given = example_inputs(inputs)
    with working("reading the graph"):
        anatomy = surgery.read(built, given)
    if html:
        _draw(html, anatomy, surgery.plan(built, policy, anatomy=anatomy) if policy else None)
    if not verify:
        emit(anatomy.to_dict(), anatomy, as_json)
        return
    with working(f"disturbing {sum(len(s.projections) for s in anatomy.sites)} projections"):
        outcome = surgery.verify(built, anatomy, given)
    both = anatomy.to_dict() | {"verification": outcome.to_dict()}
    emit(both, Group(anatomy, outcome), as_json)
    raise typer.Exit(0 if outcome.proved else FAILED)


def _draw(path: Path, anatomy: Anatomy, made: Plan | None) -> None:
    import surgery

    try:
        surgery.save_picture(path, anatomy, made)
    except (OSError, ValueError) as error:
        raise SurgeryError(
            "the drawing cannot be written",
            where=str(path),
            why=f"{type(error).__name__}: {error}",
            remedy="name a file in a folder that you may write to",
        ) from error
    note(f"drawn: {path}")


def verify(
    model: ModelName,
    settings: Settings = None,
    inputs: InputShapes = None,
    pretrained: Pretrained = None,
    checkpoint: Checkpoint = None,
    as_json: Json = False,
) -> None:
    """Read a model, and prove the reading by disturbing rows while the model runs. Exit 1 if refuted.

    Example: surgery verify timm:vit_tiny_patch16_224
    """
    import surgery

    built = Source.parse(model, settings, pretrained, checkpoint).build()
    given = example_inputs(inputs)
    with working("reading, then disturbing one projection after the other"):
        outcome = surgery.verify(built, surgery.read(built, given), given)
    emit(outcome.to_dict(), outcome, as_json)
    raise typer.Exit(0 if outcome.proved else FAILED)
