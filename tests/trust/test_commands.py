"""Every command, interrupted at any moment or short of room on the disk: an exit code, a line, no half file."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

import exporters
from exporters.peft_bridge import to_peft
from surgery.cli import app
from surgery.runs import checkpoints
from tests.surgery.cli.conftest import SETTINGS, TIMM, base, trained
from tests.surgery.cli.test_cli_train import IMAGES, write
from tests.trust.conftest import Tally
from tests.trust.faults import contents
from tests.trust.settings import MANY, times

MODEL = (TIMM, *SETTINGS)
WRITING: dict[str, tuple[str, ...]] = {
    "inspect": ("inspect", *MODEL, "--html", "model.html"),
    "plan": ("plan", *MODEL, "-p", "vit-attn-qv", "--out", "new/mine.yaml"),
    "train": ("train", "c.yaml"),
    "fold": ("fold", *MODEL, "adapter.safetensors", "--out", "new"),
    "fold-run": ("fold", "done.yaml"),
    "export": ("export", *MODEL, "--adapter", "adapter.safetensors", "--out", "new.onnx"),
    "export-run": ("export", "done.yaml"),
    "bench-run": ("bench", "done.yaml", "--no-compile", "--onnx", "model.onnx"),
    "report": ("report", "runs/done"),
    "convert": ("convert", "adapter.safetensors", "--to", "peft", "--model", *MODEL, "--out", "new"),
    "convert-back": ("convert", "lora", "--to", "safetensors", "--model", *MODEL, "--out", "new.safetensors"),
    "policies": ("policies", "new", "mine", "--from", "vit-attn-qv"),
}  # fmt: skip
SILENT: dict[str, tuple[str, ...]] = {
    "verify": ("verify", *MODEL),
    "bench": ("bench", *MODEL, "--onnx", "model.onnx", "--no-compile"),
    "diff": ("diff", "adapter.safetensors", "adapter.safetensors"),
    "info": ("info", "model.onnx"),
    "doctor": ("doctor",),
}
COMMANDS = {**WRITING, **SILENT, "train-done": ("train", "done.yaml")}
# A new policy is written before a finger is on the keys.
TAKING_TIME = sorted({*WRITING, *SILENT} - {"policies"})
KILLED = -9

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code, what it said on stderr, how long it took."""

    code: int
    said: str
    seconds: float


Prepare = Callable[[], None]
# A fresh process that has the libraries, and no threads of ours.
_CONTEXT = get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__, "surgery.runs.train", "surgery.cli.machine"])


def command(folder: Path, name: str, prepare: Prepare | None = None, more: str = "") -> Ended:
    """Run it in a process of its own, after what is to be prepared there."""
    reader, writer = _CONTEXT.Pipe(duplex=False)
    words = (*COMMANDS[name], *more.split())
    child = _CONTEXT.Process(target=_work, args=(writer, folder, words, prepare))
    child.start()
    writer.close()
    try:
        return Ended(*reader.recv())
    except EOFError:
        return Ended(KILLED, "", 0.0)
    finally:
        child.join()


def _work(
    writer: Connection, folder: Path, words: tuple[str, ...], prepare: Prepare | None
) -> None:
    os.chdir(folder)
    torch.set_num_threads(1)
    if prepare is not None:
        prepare()
    started = time.perf_counter()
    try:
        result = CliRunner().invoke(app, words)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:  # the command was over
        writer.send((0, "", time.perf_counter() - started))
    else:
        writer.send((result.exit_code, result.stderr, time.perf_counter() - started))


@dataclass(frozen=True)
class Interrupt:
    """A finger on Ctrl-C, so many seconds later."""

    seconds: float

    def __call__(self) -> None:
        signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
        signal.setitimer(signal.ITIMER_REAL, self.seconds)


@dataclass(frozen=True)
class Kill:
    """kill -9, so many seconds later."""

    seconds: float

    def __call__(self) -> None:
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        signal.setitimer(signal.ITIMER_REAL, self.seconds)


@dataclass(frozen=True)
class Room:
    """No file grows beyond ``size`` bytes: a write fails in the middle, whoever writes."""

    size: int

    def __call__(self) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.size))


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands ask for: an adapter, a PEFT folder, an ONNX file, data, a run that was trained."""
    folder = tmp_path_factory.mktemp("material")
    trained(folder / "adapter.safetensors")
    to_peft(trained(folder / "other.safetensors", adapter="lora"), folder / "lora")
    exporters.to_onnx(base(), folder / "model.onnx")
    for name, colour in {"blue": (30, 30, 200), "red": (200, 30, 30)}.items():
        (folder / "colours" / name).mkdir(parents=True)
        for number in range(6):
            Image.new("RGB", (32, 32), colour).save(folder / f"colours/{name}/{number}.png")
    write(folder / "c.yaml", IMAGES)
    write(folder / "done.yaml", IMAGES, output={"folder": "runs/done"})
    return folder


def _linked(material: Path, folder: Path) -> Path:
    folder.mkdir()
    for source in material.iterdir():
        (folder / source.name).symlink_to(source)
    return folder


@pytest.fixture(scope="module")
def finished(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was trained to its end."""
    folder = _linked(material, tmp_path_factory.mktemp("finished") / "run")
    assert command(folder, "train-done").code == 0
    (folder / "runs/done/report.html").unlink()
    return folder / "runs"


Place = Callable[[str, str], Path]


@pytest.fixture
def place(
    material: Path, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Place:
    """A folder with the material, linked, and the run if the command takes one."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))

    def make(label: str, name: str) -> Path:
        folder = _linked(material, tmp_path / label)
        if "done" in " ".join(COMMANDS[name]):
            shutil.copytree(request.getfixturevalue("finished"), folder / "runs")
        return folder

    return make


@pytest.mark.parametrize("name", TAKING_TIME)
def test_ctrl_c_at_any_moment(name: str, place: Place, tally: Tally) -> None:
    whole = place("whole", name)
    through = command(whole, name)
    assert through.code == 0, through.said
    moments = random.Random(name if not MANY else None)
    for turn in range(times(2)):
        folder = place(str(turn), name)
        before = set(contents(folder))
        ended = command(folder, name, Interrupt(moments.uniform(0.05, 0.95) * through.seconds))
        assert ended.code in (0, 130) and "Traceback" not in ended.said, ended.said
        assert ended.code == 0 or "interrupted" in ended.said
        assert_whole(folder, before)
        if name == "train":
            assert_goes_on(folder, whole)
        tally["interrupts"] += 1


def test_training_that_is_killed_goes_on(place: Place, tally: Tally) -> None:
    """At any moment: the checkpoint that is there is whole, and the end is that of a run never killed."""
    whole = place("whole", "train")
    seconds = command(whole, "train").seconds
    moments = random.Random(None if MANY else 0)
    for turn in range(times(3)):
        folder = place(str(turn), "train")
        ended = command(folder, "train", Kill(moments.uniform(0.3, 0.95) * seconds))
        assert ended.code in (0, KILLED)
        assert_goes_on(folder, whole)
        tally["kills"] += 1


def assert_goes_on(folder: Path, whole: Path) -> None:
    """Resumed from its checkpoint, or begun anew where there is none yet: the adapter of the whole run."""
    resumable = checkpoints.latest(folder / "runs/colours/checkpoints")
    assert command(folder, "train", more="--resume" if resumable else "--overwrite").code == 0
    ours, theirs = (
        safetensors.torch.load_file(at / "runs/colours/adapter.safetensors")
        for at in (folder, whole)
    )
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize("name", sorted(WRITING))
def test_a_disk_without_room(name: str, place: Place, tally: Tally) -> None:
    whole = place("whole", name)
    before = contents(whole)
    assert command(whole, name).code == 0
    sizes = [len(data) for file, data in contents(whole).items() if data != before.get(file)]
    largest = max(sizes)
    for size in (1, largest // 2, largest * 9 // 10):
        folder = place(str(size), name)
        before = set(contents(folder))
        ended = command(folder, name, Room(size))
        assert ended.code == 1 and "Traceback" not in ended.said, ended.said
        assert "error: " in ended.said and "hint: " in ended.said and "should not" not in ended.said
        assert_whole(folder, before)
        tally["faults"] += 1


def assert_whole(folder: Path, before: set[str]) -> None:
    """Whatever is new can be read to its end, and nothing hidden is left."""
    new = [folder / file for file in set(contents(folder)) - before]
    hidden = [
        file for file in new if any(part[0] == "." for part in file.relative_to(folder).parts)
    ]
    assert all(".surgery" in file.parts for file in hidden), hidden
    for file in new:
        READERS.get(file.suffix, Path.read_bytes)(file)
    for held in folder.glob("runs/*/checkpoints"):
        checkpoints.latest(held)


def _page(file: Path) -> None:
    assert file.read_text(encoding="utf-8").rstrip().endswith("</html>")


READERS: dict[str, Callable[[Path], Any]] = {
    ".safetensors": safetensors.torch.load_file,
    ".onnx": lambda file: exporters.open_session(file),
    ".json": lambda file: json.loads(file.read_text(encoding="utf-8")),
    ".yaml": lambda file: yaml.safe_load(file.read_text(encoding="utf-8")),
    ".html": _page,
}
