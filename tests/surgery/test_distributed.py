"""Two processes: the same decisions on every rank, and the result of one process within rounding."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).parent / "distributed" / "ranks.py"


@pytest.fixture(scope="module")
def alone() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ranks", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left behind."""
    where = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(SCRIPT), str(where)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return where


def close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.allclose(value, other[name], atol=tolerance, rtol=0), name


def test_recomposition_is_the_same_on_every_rank_and_as_in_one_process(
    folder: Path, alone: ModuleType
) -> None:
    first, second = (torch.load(folder / f"ddp-{rank}.pt") for rank in (0, 1))
    assert first["switches"] == second["switches"] == [2, 3, 5]
    close(first["state"], second["state"], 0)
    net = alone.network("srlora")
    assert alone.train(net, True, 0, 1) == first["switches"]
    close(net.state_dict(), first["state"], 1e-5)


def test_fsdp_trains_adapters_that_stay_put(folder: Path, alone: ModuleType) -> None:
    net = alone.network("symlora")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    alone.train(net, False, 0, 1)
    moved = [name for name, value in net.state_dict().items() if not value.equal(before[name])]
    assert any(".adapters." in name for name in moved)
    for rank in (0, 1):
        close(net.state_dict(), torch.load(folder / f"fsdp-{rank}.pt"), 1e-5)


def test_recomposition_under_fsdp_is_refused_on_every_rank(folder: Path) -> None:
    for rank in (0, 1):
        assert "train it under DDP" in (folder / f"refusal-{rank}.txt").read_text()


def test_processes_with_other_schedules_are_refused_on_every_rank(folder: Path) -> None:
    for rank in (0, 1):
        said = (folder / f"disagreement-{rank}.txt").read_text()
        assert "disagree" in said and "(6," in said and "(7," in said
