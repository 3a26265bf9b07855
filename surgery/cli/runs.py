"""``surgery train`` and ``report``."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from surgery.cli.output import Json, emit, first_process, note, working
from surgery.cli.trained import SUFFIXES, Trained, source_of, write_report
from surgery.errors import RunError

if TYPE_CHECKING:
    from torch import nn

    from surgery.runs.folder import RunFolder
    from surgery.runs.samples import Data
    from surgery.runs.schema import RunSpec


def train(
    config: Annotated[
        Path | None, typer.Argument(help="A training file, YAML.", show_default=False)
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint, if there is one.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Begin anew in a folder that holds a run.")
    ] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of a training file.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train adapters as a YAML file says; then fold and export take the same file.

    Ctrl-C ends after the present step, with a checkpoint: --resume goes on as if nothing had happened.

    Example: surgery train flowers.yaml
    """
    from surgery.runs import training_file

    if schema:
        emit(training_file.json_schema(), "", as_json=True)
        return
    if config is None:
        raise typer.BadParameter("name a training file")
    if resume and overwrite:
        raise typer.BadParameter("--resume and --overwrite exclude each other")
    spec, _ = training_file.load(config)
    metrics = _train(spec, config, resume=resume, overwrite=overwrite)
    if metrics is not None:
        plain = metrics | {"folder": spec.output.folder}
        emit(plain, _table(plain, config), as_json)


def report(
    folder: Annotated[
        Path, typer.Argument(help="A run folder, or its training file.", show_default=False)
    ],
    as_json: Json = False,
) -> None:
    """Write RUN_FOLDER/report.html anew: curves, adapters over time, fold, export, latency.

    Example: surgery report runs/flowers
    """
    from surgery.runs.folder import RunFolder

    run = Trained.of(folder).folder if folder.suffix in SUFFIXES else RunFolder(folder)
    place = write_report(run)
    emit({"path": str(place)}, f"wrote {place}", as_json)


def _train(spec: RunSpec, config: Path, *, resume: bool, overwrite: bool) -> dict[str, Any] | None:
    """The metrics; None on any process but the first."""
    from surgery.runs.folder import RunFolder
    from surgery.runs.samples import open_data

    folder = RunFolder(Path(spec.output.folder).expanduser())
    if not resume and first_process():
        _make_room(folder, config, overwrite)
    with working("opening the data"):
        data = open_data(spec.data, spec.seed)
    model = source_of(spec, data.labels, data.kind).build(weights_matter=True)
    metrics = _carry_out(spec, data, model, config, resume)
    if metrics is not None:
        write_report(folder)
    return metrics


def _carry_out(
    spec: RunSpec, data: Data, model: nn.Module, config: Path, resume: bool
) -> dict[str, Any] | None:
    from surgery.runs.train import Run

    try:
        with working("training", quiet=True):
            metrics = Run(spec, data, model).train(resume=resume)
    except KeyboardInterrupt:
        note(f"surgery train {config} --resume goes on from {spec.output.folder}")
        raise
    from accelerate import PartialState

    return metrics if PartialState().is_main_process else None


def _make_room(folder: RunFolder, config: Path, overwrite: bool) -> None:
    """Refuse to train over a run, or clear it away."""
    held = [folder.adapter, folder.checkpoints]
    if not any(path.exists() for path in held):
        return
    if not overwrite:
        raise RunError(
            "the run folder holds a run",
            where=str(folder.path),
            remedy=f"surgery train {config} --resume goes on with it, --overwrite begins anew",
        )
    for path in folder.delivered():
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    shutil.rmtree(folder.checkpoints, ignore_errors=True)
    shutil.rmtree(folder.events, ignore_errors=True)
    made = (
        folder.adapter,
        folder.metrics,
        folder.layers,
        folder.fold,
        folder.export,
        folder.latency,
    )
    for path in (*made, folder.report):
        path.unlink(missing_ok=True)


def _table(plain: dict[str, Any], config: Path) -> Table:
    table = Table(title=plain["folder"], title_justify="left", show_header=False)
    for name, value in plain["validation"].items():
        table.add_row(f"validation {name}", f"{value:.4f}")
    table.add_row("steps", f"{plain['steps']} of {plain['planned_steps']}")
    table.add_row("kept", f"the weights after step {plain['kept_step']}")
    share = plain["trainable"] / plain["total"]
    table.add_row("trained", f"{plain['trainable']:,} of {plain['total']:,} weights ({share:.2%})")
    table.add_row("next", f"surgery fold {config}; surgery export {config}")
    return table
