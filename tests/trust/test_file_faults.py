"""Killed, full, read-only or contested at any step of writing: a file is complete or absent."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

import surgery
from exporters.errors import ExportError
from exporters.peft_bridge import to_peft
from exporters.staging import stage
from surgery.adapter_file import read_file
from surgery.cli.staging import folder_for
from tests.trust.conftest import Tally
from tests.trust.faults import contents, disk_full, file_faults, in_child, kill
from tests.trust.promises import photograph
from tests.trust.settings import times
from tests.trust.small import adapted, disturb

NAME = "a.safetensors"
Publish = Callable[[Path, str], None]


def _save(folder: Path, version: str) -> None:
    model = adapted("lora")
    surgery.save(disturb(model) if version == "new" else model, folder / NAME)


def _publish(folder: Path, version: str) -> None:
    """What an export writes: a model, its weights beside it, a portable model, the card."""
    with stage(folder) as aside:
        (aside.folder / "m.onnx").write_text(f"model {version}")
        (aside.folder / "m.onnx.data").write_text(f"weights {version}")
        (aside.folder / "m.portable.onnx").write_text(f"portable {version}")
        (aside.folder / "m.md").write_text(f"card {version}")
        aside.publish()


def _peft(folder: Path, version: str) -> None:
    to_peft(adapted("lora", rank=1 if version == "new" else 2), folder, overwrite=True)


WRITERS = {"save": _save, "export": _publish, "peft": _peft}


def _visible(folder: Path) -> dict[str, bytes]:
    """What a reader may come upon; a killed writer leaves its hidden file or folder beside."""
    return {name: data for name, data in contents(folder).items() if not name.startswith(".")}


def _steps(write: Publish, folder: Path, before: bool) -> int:
    folder.mkdir()
    write(folder, "old")  # in the first run caches fill
    if not before:
        for file in folder.iterdir():
            file.unlink()
    with file_faults(None, kill) as steps:
        write(folder, "new")
    return steps.count


@pytest.mark.parametrize("before", [False, True], ids=["first", "again"])
@pytest.mark.parametrize("name", WRITERS)
def test_killed_at_every_step(name: str, before: bool, tmp_path: Path, tally: Tally) -> None:
    """kill -9 of a real process; then each file is the old one, the new one, or not there."""
    write = WRITERS[name]
    count = _steps(write, tmp_path / "whole", before)
    new = _visible(tmp_path / "whole")
    for at in range(count):
        folder = tmp_path / str(at)
        folder.mkdir()
        if before:
            write(folder, "old")
        old = _visible(folder)

        def work(folder: Path = folder, at: int = at) -> None:
            with file_faults(at, kill):
                write(folder, "new")

        assert in_child(work) == signal.SIGKILL
        _check_whole(_visible(folder), old, new)
        tally["kills"] += 1
        write(folder, "new")
        assert _visible(folder) == new


def _check_whole(found: dict[str, bytes], old: dict[str, bytes], new: dict[str, bytes]) -> None:
    for file, data in found.items():
        assert data in (old.get(file), new.get(file)), file
    if "m.onnx" in found:  # a model is never there with the weights of another
        assert found["m.onnx"].split()[-1] == found["m.onnx.data"].split()[-1]
    if "m.md" in found:  # a card lies beside the models that it speaks of, or there is none
        assert {data.split()[-1] for data in found.values()} == {found["m.md"].split()[-1]}
    if "adapter_config.json" in found:
        assert {**found} in (old, new)


@pytest.mark.parametrize("before", [False, True], ids=["first", "again"])
@pytest.mark.parametrize("name", WRITERS)
def test_disk_full_at_every_step(name: str, before: bool, tmp_path: Path, tally: Tally) -> None:
    write = WRITERS[name]
    count = _steps(write, tmp_path / "whole", before)
    new = _visible(tmp_path / "whole")
    for at in range(count):
        folder = tmp_path / str(at)
        folder.mkdir()
        if before:
            write(folder, "old")
        old = contents(folder)
        error = _error_of(write, folder, at)
        if error is None:  # the fault struck the tidying up, when all was in place
            assert _visible(folder) == new
        else:
            assert error.where and error.why and error.remedy
            _check_whole(contents(folder), old, new)
        tally["faults"] += 1


def _error_of(write: Publish, folder: Path, at: int) -> surgery.SurgeryError | None:
    try:
        with file_faults(at, disk_full):
            write(folder, "new")
    except surgery.SurgeryError as error:
        return error
    return None


def test_a_process_killed_at_any_time(tmp_path: Path, tally: Tally) -> None:
    """Not only between our steps: a writer in a loop, killed by another process."""
    one, other = adapted("lora"), disturb(adapted("lora"))
    wholes = {surgery.save(m, tmp_path / "whole").read_bytes() for m in (one, other)}
    path, rng = tmp_path / NAME, random.Random(0)
    for _ in range(times(8)):
        child = os.fork()
        if child == 0:
            while True:
                surgery.save(one, path)
                surgery.save(other, path)
        time.sleep(rng.uniform(0.002, 0.06))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert not path.exists() or path.read_bytes() in wholes
        tally["kills"] += 1


def test_two_processes_write_one_path(tmp_path: Path, tally: Tally) -> None:
    models = [adapted("lora"), disturb(adapted("lora"))]
    wholes = {surgery.save(m, tmp_path / "whole").read_bytes() for m in models}
    path = tmp_path / NAME
    children = []
    for model in models:
        child = os.fork()
        if child == 0:
            for _ in range(times(20)):
                surgery.save(model, path)
            os._exit(0)
        children.append(child)
    alive = set(children)
    while alive:
        alive -= {c for c in alive if os.waitpid(c, os.WNOHANG)[0] == c}
        if path.exists():
            assert path.read_bytes() in wholes
            read_file(path)
            tally["files"] += 1
    assert [p for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_limit_on_the_size_of_files(tmp_path: Path, tally: Tally) -> None:
    """A real fault of the operating system, in the middle of a write."""
    model = adapted("lora")
    size = surgery.save(model, tmp_path / "whole").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for limit in range(1, size, max(1, size // times(10))):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            with pytest.raises(surgery.CheckpointError, match="cannot be written"):
                surgery.save(model, tmp_path / NAME)
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert [p.name for p in tmp_path.iterdir()] == ["whole"]
            tally["faults"] += 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("name", ["peft", "fold"])
def test_a_full_disk_that_safetensors_meets(name: str, tmp_path: Path, tally: Tally) -> None:
    """It says so in an exception of its own, and users see ours."""
    (tmp_path / "there").write_text("before")

    def peft() -> None:
        to_peft(adapted("lora"), tmp_path)

    def fold() -> None:
        with folder_for(tmp_path / "new", overwrite=False) as aside:
            safetensors.torch.save_file({"a": torch.zeros(999)}, aside / "a.safetensors")

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, hard))
    try:
        with pytest.raises(surgery.SurgeryError, match="written") as caught:
            {"peft": peft, "fold": fold}[name]()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert "File too large" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    tally["faults"] += 1


@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_that_cannot_be_written(name: str, tmp_path: Path, tally: Tally) -> None:
    """Below a file there is no folder, not even for root, whom permissions do not bind."""
    (tmp_path / "file").write_text("here")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "no" / "where"):
        before = contents(tmp_path)
        with pytest.raises((surgery.CheckpointError, ExportError)) as caught:
            WRITERS[name](folder, "new")
        assert caught.value.remedy
        assert contents(tmp_path) == before
        tally["faults"] += 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("name", WRITERS)
def test_a_read_only_folder(name: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises((surgery.CheckpointError, ExportError)):
        WRITERS[name](tmp_path, "new")
    tmp_path.chmod(0o700)


@pytest.mark.parametrize("path", ["", ".", "/", "..", "a\0b", "a" * 300])
def test_a_path_that_is_none(path: str, tally: Tally) -> None:
    model = adapted("lora")
    before = photograph(model)
    with pytest.raises(surgery.CheckpointError):
        surgery.save(model, path)
    with pytest.raises(surgery.CheckpointError):
        surgery.load(model, path)
    assert photograph(model) == before
    tally["files"] += 2


def test_clock_and_locale_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted("lora")
    expected = surgery.save(model, tmp_path / "a").read_bytes()
    monkeypatch.setattr(time, "time", lambda: -1e9)
    monkeypatch.setenv("LC_ALL", "tr_TR.ISO-8859-9")
    monkeypatch.setenv("TZ", "Nowhere/Else")
    path = surgery.save(model, tmp_path / "ıİ ü 表.safetensors")
    assert path.read_bytes() == expected
    surgery.load(adapted("lora"), path)


def test_weights_that_share_storage_are_saved(tmp_path: Path) -> None:
    """Views of one flat tensor, as some optimizers make them."""
    model = adapted("lora")
    flat = torch.cat([model.out.weight.detach().flatten(), model.out.bias.detach()])
    model.out.weight.data = flat[: model.out.weight.numel()].view_as(model.out.weight)
    model.out.bias.data = flat[model.out.weight.numel() :]
    file = read_file(surgery.save(model, tmp_path / NAME))
    assert torch.equal(file.tensors["out.bias"], model.out.bias)
    assert json.dumps(file.plan.to_dict())
