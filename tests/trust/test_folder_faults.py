"""Killed, or full, at any step of writing a folder: a folded checkpoint, a checkpoint of training."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
import torch

import surgery
from surgery.runs import checkpoints
from tests.surgery.test_on_disk import Headed, checkpoint, made, trained
from tests.trust.conftest import Tally
from tests.trust.faults import contents, disk_full, file_faults, in_child, kill


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint in two shards, and an adapter."""
    folder = tmp_path_factory.mktemp("base")
    model = made(Headed, torch.bfloat16)
    checkpoint(folder / "whole", {k: v.clone() for k, v in model.state_dict().items()}, 2)
    trained(model, folder / "adapter", train=("head",))
    return folder


def _fold(base: Path, target: Path) -> None:
    surgery.fold_checkpoint(base / "whole", base / "adapter", target)


def _steps(base: Path, target: Path) -> int:
    _fold(base, target.with_name("first"))  # in the first run caches fill
    with file_faults(None, kill) as steps:
        _fold(base, target)
    return steps.count


def test_a_fold_on_disk_killed_at_every_step(base: Path, tmp_path: Path, tally: Tally) -> None:
    before = contents(base)
    count = _steps(base, tmp_path / "whole")
    assert count > 10
    for at in range(count):
        target = tmp_path / str(at)

        def work(target: Path = target, at: int = at) -> None:
            with file_faults(at, kill):
                _fold(base, target)

        assert in_child(work) == signal.SIGKILL
        assert contents(base) == before
        if not target.exists():
            _fold(base, target)
        assert contents(target) == contents(tmp_path / "whole")
        tally["kills"] += 1


def test_a_fold_on_disk_that_is_full_at_every_step(
    base: Path, tmp_path: Path, tally: Tally
) -> None:
    before = contents(base)
    for at in range(_steps(base, tmp_path / "whole")):
        target = tmp_path / str(at)
        error = _error_of(base, target, at)
        if error is None:  # the fault struck the tidying up
            assert target.exists()
        else:
            assert "cannot be written" in str(error) and error.remedy
        assert not target.exists() or contents(target) == contents(tmp_path / "whole")
        assert contents(base) == before
        tally["faults"] += 1
    hidden = [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert hidden == []


def _error_of(base: Path, target: Path, at: int) -> surgery.CheckpointError | None:
    try:
        with file_faults(at, disk_full):
            _fold(base, target)
    except surgery.CheckpointError as error:
        return error
    return None


def _checkpoint(folder: Path) -> None:
    folder.mkdir()
    for name in ("adapter.safetensors", "optimizer.bin", "state.json"):
        with open(folder / name, "wb") as file:
            file.write(name.encode() * 99)
    checkpoints.seal(folder)


def test_a_checkpoint_killed_at_every_step_is_none_or_whole(tmp_path: Path, tally: Tally) -> None:
    with file_faults(None, kill) as steps:
        _checkpoint(tmp_path / "checkpoint-1")
    whole = contents(tmp_path / "checkpoint-1")
    newer = tmp_path / "checkpoint-2"
    for at in range(steps.count):

        def work(at: int = at) -> None:
            with file_faults(at, kill):
                _checkpoint(newer)

        assert in_child(work) == signal.SIGKILL
        found = checkpoints.latest(tmp_path)
        assert found is not None and whole.items() <= contents(found).items()
        checkpoints.sweep(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-1", found.name}
        shutil.rmtree(newer, ignore_errors=True)
        tally["kills"] += 1
