"""``surgery fold``: from base model and adapter file to the plain model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from surgery.cli.models import Source
from surgery.cli.options import (
    Checkpoint,
    InputShapes,
    ModelOrRun,
    Overwrite,
    Pretrained,
    Settings,
    example_inputs,
    wanted,
)
from surgery.cli.output import Json, emit, working
from surgery.cli.staging import folder_for
from surgery.cli.trained import trained_by

if TYPE_CHECKING:
    from torch import nn


def fold(
    model: ModelOrRun,
    adapter: Annotated[
        Path | None, typer.Argument(help="What surgery.save wrote.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write.")] = None,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Compare the outputs before and after.")
    ] = True,
    overwrite: Overwrite = False,
    settings: Settings = None,
    inputs: InputShapes = None,
    pretrained: Pretrained = None,
    checkpoint: Checkpoint = None,
    as_json: Json = False,
) -> None:
    """Load an adapter file onto its base model, fold it, and save the plain model.

    transformers models are saved as save_pretrained does, others as DIR/model.safetensors.
    With a training file alone, its run is folded into RUN_FOLDER/folded.

    Example: surgery fold timm:vit_tiny_patch16_224 adapter.safetensors --pretrained --out folded
    """
    import surgery
    from surgery.anatomy.inputs import example_inputs as made_inputs

    run = trained_by(model, adapter, settings, pretrained, checkpoint)
    source = run.source if run else Source.parse(model, settings, pretrained, checkpoint)
    adapter = run.folder.adapter if run else wanted(adapter, "ADAPTER")
    out = out or (run.folder.path / "folded" if run else wanted(out, "--out"))
    given = example_inputs(inputs)
    with folder_for(out, overwrite) as aside:
        built = source.build(weights_matter=True)
        with working("folding"):
            surgery.load(built, adapter, example_inputs=given)
            compared = made_inputs(built, given) if check else None
            report = surgery.fold(built, check_inputs=compared)
            saver(built)(aside)
            if run:
                run.complete(aside)
    plain = report.to_dict() | {"out": str(out)}
    if run:
        run.keep(run.folder.fold, plain)
    emit(plain, report, as_json)


def saver(model: nn.Module) -> Callable[[Path], object]:
    """How a plain model of this kind is written into a folder."""
    own = getattr(model, "save_pretrained", None)
    return own if callable(own) else lambda folder: _save_state(model, folder)


def _save_state(model: nn.Module, folder: Path) -> None:
    """Every key of the state dict, those of tied weights included, so that it loads strictly."""
    from surgery.atomic import write_tensors

    state, seen = {}, set()
    for key, value in model.state_dict().items():
        tensor = value.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        state[key] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    write_tensors(folder / "model.safetensors", state)
