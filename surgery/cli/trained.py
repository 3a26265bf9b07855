"""What fold, export and bench know of a run, by its training file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from surgery.cli.models import Source
from surgery.cli.output import note
from surgery.errors import RunError

if TYPE_CHECKING:
    from torch import nn

    from surgery.runs.feed import Feeding
    from surgery.runs.folder import RunFolder
    from surgery.runs.samples import Kind
    from surgery.runs.schema import RunSpec

SUFFIXES = (".yaml", ".yml")
_CLASSIFIERS = {
    "images": "AutoModelForImageClassification",
    "texts": "AutoModelForSequenceClassification",
}


@dataclass(frozen=True)
class Trained:
    """A run that fold and export go on with.

    Attributes:
        spec: What its training file says.
        folder: Where its results are.
        labels: Name of each class.
        kind: What was learned from.
    """

    spec: RunSpec
    folder: RunFolder
    labels: list[str]
    kind: Kind

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
        metrics = folder.read(folder.metrics)
        if metrics is None or not folder.adapter.is_file():
            raise RunError(
                "nothing is trained yet",
                where=str(folder.path),
                why="it holds no finished run",
                remedy=f"surgery train {config}",
            )
        return cls(spec, folder, folder.read(folder.labels) or [], metrics["kind"])

    @property
    def source(self) -> Source:
        """Where the base model comes from."""
        return source_of(self.spec, tuple(self.labels), self.kind)

    def facts(self, model: nn.Module, count: int = 16) -> dict[str, Any]:
        """What the ONNX file should know: classes, real inputs, and how good the model is."""
        metrics = self.folder.read(self.folder.metrics) or {}
        figures = {f"validation_{k}": v for k, v in metrics.get("validation", {}).items()}
        feeding = self._feeding(model)
        samples = feeding.sample(count) if feeding else None
        return {"labels": self.labels or None, "samples": samples, "metadata": figures}

    def complete(self, folder: Path) -> None:
        """Put beside a folded model what it is used with: class names, and the tokenizer of texts."""
        from surgery.runs.texts import tokenizer_of

        self.folder.write(folder / "labels.json", self.labels)
        if self.kind == "texts":
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
        """Keep what a command found in the run folder, and write the report anew, where matplotlib is there to draw."""
        self.folder.write(path, plain)
        try:
            write_report(self.folder)
        except RunError as error:
            note(f"{error.what}: {error.remedy}")

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


def source_of(spec: RunSpec, labels: tuple[str, ...], of: Kind) -> Source:
    """The model of a training file, with a head for these classes."""
    kind, _, name = spec.model.name.partition(":")
    changes = dict(spec.model.set)
    auto = None
    if kind == "timm" and labels:
        _check_classes(changes.setdefault("num_classes", len(labels)), labels)
    if kind == "hf" and labels:
        auto = _CLASSIFIERS[of]
        changes |= {"id2label": dict(enumerate(labels)), "label2id": _numbered(labels)}
    checkpoint = Path(spec.model.checkpoint).expanduser() if spec.model.checkpoint else None
    return Source(kind, name, changes, spec.model.pretrained, checkpoint, auto)


def _check_classes(asked: Any, labels: tuple[str, ...]) -> None:
    if asked != len(labels):
        raise RunError(
            f"model.set asks for {asked} classes",
            why=f"the data have {len(labels)}: {', '.join(labels[:5])}{', ...' if len(labels) > 5 else ''}",
            remedy="leave num_classes out: the head gets one output for each class of the data",
        )


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
