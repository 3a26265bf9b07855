"""``surgery train`` and ``report``, and what fold and export know of a run folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from surgery.cli.models import Source
from surgery.cli.output import Json, emit, note, working
from surgery.errors import RunError

if TYPE_CHECKING:
    from torch import nn

    from surgery.runs.feed import Feeding
    from surgery.runs.folder import RunFolder
    from surgery.runs.samples import Data
    from surgery.runs.schema import RunSpec

SUFFIXES = (".yaml", ".yml")


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
    folder: Annotated[Path, typer.Argument(help="A run folder.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Write RUN_FOLDER/report.html anew: curves, adapters over time, fold, export, latency.

    Example: surgery report runs/flowers
    """
    from surgery.runs.folder import RunFolder

    place = write_report(RunFolder(folder))
    emit({"path": str(place)}, f"wrote {place}", as_json)


@dataclass(frozen=True)
class Trained:
    """A run that fold and export go on with.

    Attributes:
        spec: What its training file says.
        folder: Where its results are.
        labels: Name of each class.
    """

    spec: RunSpec
    folder: RunFolder
    labels: list[str]

    @classmethod
    def of(cls, config: Path) -> Trained:
        """The run of a training file.

        Raises:
            RunError: If the file does not fit the schema, or nothing was trained with it yet.
        """
        from surgery.runs import training_file
        from surgery.runs.folder import RunFolder

        spec, _ = training_file.load(config)
        folder = RunFolder(Path(spec.output.folder).expanduser())
        if not folder.adapter.is_file():
            raise RunError(
                "nothing is trained yet",
                where=str(folder.adapter),
                why="there is no such file",
                remedy=f"surgery train {config}",
            )
        return cls(spec, folder, folder.read(folder.labels) or [])

    @property
    def source(self) -> Source:
        """Where the base model comes from."""
        return source_of(self.spec, tuple(self.labels))

    def facts(self, model: nn.Module, count: int = 16) -> dict[str, Any]:
        """What the ONNX file should know: classes, real inputs, and how good the model is."""
        metrics = self.folder.read(self.folder.metrics) or {}
        figures = {f"validation_{k}": v for k, v in metrics.get("validation", {}).items()}
        feeding = self._feeding(model)
        samples = feeding.sample(count) if feeding else None
        return {"labels": self.labels or None, "samples": samples, "metadata": figures}

    def complete(self, folder: Path) -> None:
        """Put beside a folded model what it is used with: class names, and the tokenizer of texts."""
        from surgery.runs.feed import tokenizer_of

        self.folder.write(folder / "labels.json", self.labels)
        if (
            not (self.spec.data.images or self.spec.data.image)
            and self.spec.model.name[:3] == "hf:"
        ):
            tokenizer_of(self.spec).save_pretrained(folder)

    def exported(self) -> list[Path]:
        """The files that ``surgery export`` wrote for the run.

        Raises:
            RunError: If there are none.
        """
        found = sorted(self.folder.path.glob("*.onnx"))
        if not found:
            raise RunError(
                "nothing is exported yet",
                where=str(self.folder.path),
                why="it holds no .onnx file",
                remedy="surgery export with the same training file",
            )
        return found

    def keep(self, path: Path, plain: dict[str, Any]) -> None:
        """Keep what a command found in the run folder, and write the report anew."""
        self.folder.write(path, plain)
        write_report(self.folder)

    def _feeding(self, model: nn.Module) -> Feeding | None:
        from surgery.runs.feed import feed
        from surgery.runs.samples import open_data

        try:
            return feed(open_data(self.spec.data, self.spec.seed), model, self.spec)
        except RunError as error:
            note(f"verified on made-up inputs alone, the data cannot be opened: {error.what}")
            return None


def trained_by(
    text: str,
    adapter: Path | None,
    settings: list[str] | None,
    pretrained: bool | None,
    checkpoint: Path | None,
) -> Trained | None:
    """The run of a training file, or None if the words name a model.

    Raises:
        typer.BadParameter: If a training file and options of a model are given together.
        RunError: As :meth:`Trained.of`.
    """
    if not text.endswith(SUFFIXES):
        return None
    if adapter or settings or pretrained is not None or checkpoint:
        raise typer.BadParameter("the training file says which model and adapter: leave them out")
    return Trained.of(Path(text))


def source_of(spec: RunSpec, labels: tuple[str, ...]) -> Source:
    """The model of a training file, with a head for these classes."""
    kind, _, name = spec.model.name.partition(":")
    changes = dict(spec.model.set)
    auto = None
    if kind == "timm" and labels:
        changes = {"num_classes": len(labels)} | changes
    if kind == "hf" and labels:
        images = spec.data.images or spec.data.image
        auto = "AutoModelForImageClassification" if images else None
        auto = auto or "AutoModelForSequenceClassification"
        changes |= {"id2label": dict(enumerate(labels)), "label2id": _numbered(labels)}
    checkpoint = Path(spec.model.checkpoint).expanduser() if spec.model.checkpoint else None
    return Source(kind, name, changes, spec.model.pretrained, checkpoint, auto)


def write_report(folder: RunFolder) -> Path:
    """Write the page of a run.

    Raises:
        RunError: If the folder holds no run, or matplotlib is not installed.
    """
    from surgery.runs.report import render

    folder.write(folder.report, render(folder))
    return folder.report


def _numbered(labels: tuple[str, ...]) -> dict[str, int]:
    return {name: number for number, name in enumerate(labels)}


def _train(spec: RunSpec, config: Path, *, resume: bool, overwrite: bool) -> dict[str, Any] | None:
    """The metrics; None on any process but the first."""
    from surgery.runs.folder import RunFolder
    from surgery.runs.samples import open_data

    folder = RunFolder(Path(spec.output.folder).expanduser())
    if not resume:
        _make_room(folder, config, overwrite)
    with working("opening the data"):
        data = open_data(spec.data, spec.seed)
    model = source_of(spec, data.labels).build(weights_matter=True)
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
    import shutil

    held = [folder.adapter, folder.checkpoints]
    if not any(path.exists() for path in held):
        return
    if not overwrite:
        raise RunError(
            "the run folder holds a run",
            where=str(folder.path),
            remedy=f"surgery train {config} --resume goes on with it, --overwrite begins anew",
        )
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
