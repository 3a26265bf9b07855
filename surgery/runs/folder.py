"""What lies in a run folder, under which name."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgery.atomic import replace_file
from surgery.errors import RunError


@dataclass(frozen=True)
class RunFolder:
    """The folder of one training. Every file in it is there whole or not at all.

    Attributes:
        path: Where it is.
    """

    path: Path

    @property
    def adapter(self) -> Path:
        """What was learned, for ``surgery.load``."""
        return self.path / "adapter.safetensors"

    @property
    def config(self) -> Path:
        """The training file with every default spelt out."""
        return self.path / "config.yaml"

    @property
    def policy(self) -> Path:
        """The policy as it was applied, measured ranks included."""
        return self.path / "policy.yaml"

    @property
    def labels(self) -> Path:
        """Class names by number, a JSON list."""
        return self.path / "labels.json"

    @property
    def metrics(self) -> Path:
        """Final figures and the curve."""
        return self.path / "metrics.json"

    @property
    def layers(self) -> Path:
        """What every adapter did over time."""
        return self.path / "layers.json"

    @property
    def fold(self) -> Path:
        """The report of ``surgery fold``."""
        return self.path / "fold.json"

    @property
    def export(self) -> Path:
        """The report of ``surgery export``."""
        return self.path / "export.json"

    @property
    def latency(self) -> Path:
        """The report of ``surgery bench``."""
        return self.path / "latency.json"

    @property
    def report(self) -> Path:
        """The page for people."""
        return self.path / "report.html"

    @property
    def checkpoints(self) -> Path:
        """Where a training goes on from."""
        return self.path / "checkpoints"

    @property
    def events(self) -> Path:
        """TensorBoard's files."""
        return self.path / "tensorboard"

    def delivered(self) -> list[Path]:
        """What ``surgery fold`` and ``export`` wrote into the folder, by their reports; some may be gone since."""
        folded, exported = self.read(self.fold) or {}, self.read(self.export) or {}
        files = [Path(file["path"]) for file in exported.get("files", ())]
        beside = [path.with_name(f"{path.name}.data") for path in files]
        adapters = [path.with_suffix(".onnx_adapter") for path in files]
        told = [Path(text) for text in (folded.get("out"), exported.get("card")) if text]
        inside = self.path.resolve()
        return [p for p in (*files, *beside, *adapters, *told) if inside in p.resolve().parents]

    def make(self) -> None:
        """Make it.

        Raises:
            RunError: If it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(self.path, error) from error

    def write(self, path: Path, value: Any) -> None:
        """Write JSON, or text as it is.

        Raises:
            RunError: If it cannot be written; what was there before stays.
        """
        text = value if isinstance(value, str) else json.dumps(value, indent=1, default=str) + "\n"
        try:
            replace_file(path, text.encode())
        except OSError as error:
            raise unwritable(path, error) from error

    def read(self, path: Path) -> Any:
        """Read JSON; None if there is no such file.

        Raises:
            RunError: If it is no JSON.
        """
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise RunError(
                "a file of the run folder cannot be read",
                where=str(path),
                why=f"{type(error).__name__}: {error}",
                remedy="remove it, and run the command again that writes it",
            ) from error


def unwritable(path: Path, error: OSError) -> RunError:
    """The error of a file that cannot be written."""
    return RunError(
        "the run folder cannot be written",
        where=str(path),
        why=f"{type(error).__name__}: {error.strerror or error}",
        remedy="make room or name another output.folder; --resume goes on from the last checkpoint",
    )
