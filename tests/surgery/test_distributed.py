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

import surgery

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
def folder(tmp_path_factory: pytest.TempPathFactory, alone: ModuleType) -> Path:
    """What two processes left behind, who found a checkpoint of one."""
    where = tmp_path_factory.mktemp("ranks")
    alone.Training(alone.network("srlora"), True).run(0, alone.HALF).save(where / "srlora-of-one")
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


WAYS = ["ddp", "srlora", "sym-srlora", "accelerate-ddp", "accelerate-fsdp"]
WAYS += ["read-weights", "evaluated", "parts", "adamw"]


@pytest.mark.parametrize("way", WAYS)
def test_recomposition_is_the_same_on_every_rank_and_as_in_one_process(
    folder: Path, alone: ModuleType, way: str
) -> None:
    """Under DDP and FSDP2, alone and by accelerate: the same pairs at the same steps."""
    (switches, state), second = (torch.load(folder / f"{way}-{rank}.pt") for rank in (0, 1))
    assert [step for step, _ in switches] == [2, 3, 5]
    assert switches == second[0]
    if second[1]:  # accelerate gathers what FSDP2 sharded in the first process alone
        close(state, second[1], 0)
    net = alone.network("sym-srlora" if way == "sym-srlora" else "srlora")
    net = alone.encoder() if way == "read-weights" else net
    optimizer = alone.adamw if way == "adamw" else alone.sgd
    done = alone.Training(net, True, optimizer=optimizer).run(0, alone.STEPS)
    assert done.switches() == switches
    close(net.state_dict(), state, 1e-5)


def test_fsdp_trains_adapters_that_stay_put(folder: Path, alone: ModuleType) -> None:
    net = alone.network("symlora")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    alone.Training(net, False).run(0, alone.STEPS)
    moved = [name for name, value in net.state_dict().items() if not value.equal(before[name])]
    assert any(".adapters." in name for name in moved)
    for rank in (0, 1):
        close(net.state_dict(), torch.load(folder / f"symlora-{rank}.pt")[1], 1e-5)


@pytest.mark.parametrize("adapter", ["symlora", "srlora", "sym-srlora"])
def test_one_process_goes_on_with_the_checkpoint_of_two(
    folder: Path, alone: ModuleType, adapter: str
) -> None:
    training = alone.Training(alone.network(adapter), adapter in alone.RECOMPOSING)
    training.load(folder / f"{adapter}-of-two").run(alone.HALF, alone.STEPS)
    close(training.model.state_dict(), torch.load(folder / f"{adapter}-0.pt")[1], 1e-5)
    surgery.fold(training.model)


def test_two_processes_go_on_with_the_checkpoint_of_one(folder: Path) -> None:
    for rank in (0, 1):
        close(
            torch.load(folder / f"from-one-{rank}.pt"), torch.load(folder / "srlora-0.pt")[1], 1e-5
        )


def test_what_hangs_on_a_weight_is_read_anew_where_one_process_sends_it(
    folder: Path, alone: ModuleType
) -> None:
    """torch writes such values into the live weight before it loads them."""
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    for rank in (0, 1):
        outputs = torch.load(folder / f"broadcast-{rank}.pt")
        torch.testing.assert_close(outputs, alone.network("polar")(images), atol=1e-5, rtol=0)


REFUSED = {
    "disagreement": ("on when to recompose", "(6,", "(7,"),
    "other-weights": ("started from different weights", "before surgery.apply"),
    "sharded-later": ("other factors than the optimizer trains",),
    "optimizer-first": ("make the optimizer after fully_shard",),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_go_wrong_is_refused_on_every_rank(folder: Path, case: str) -> None:
    for rank in (0, 1):
        said = (folder / f"{case}-{rank}.txt").read_text()
        assert all(words in said for words in REFUSED[case])


def test_parts_are_not_gathered_for_a_load_that_cannot_be(folder: Path) -> None:
    """It would wait for the other processes, which do not load."""
    assert "Error(s) in loading state_dict" in (folder / "parts-into-a-whole-0.txt").read_text()
