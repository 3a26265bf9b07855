"""Copies, pickles, processes, threads, workers, and what a thousand operations leave behind."""

from __future__ import annotations

import copy
import gc
import io
import os
import pickle
import subprocess
import sys
import threading
import tracemalloc
import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import surgery
from surgery.operations.adapted import Adapted
from tests.trust.architectures import build, inputs
from tests.trust.conftest import Tally
from tests.trust.promises import photograph
from tests.trust.settings import times
from tests.trust.small import BARE, POLICY, WHOLE, adapted, plan_of

X = inputs(WHOLE)
KINDS = ("lora", "srlora", "polar")
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("architecture", [WHOLE, BARE], ids=["module", "parameter"])
@pytest.mark.parametrize("kind", KINDS)
def test_copies_and_pickles_live_on(kind: str, architecture, tally: Tally) -> None:
    """Each computes the same, and can be undone and folded by itself."""
    model = adapted(kind, architecture)
    y, original = model(X), photograph(build(architecture))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies = (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(file, weights_only=False),
        copy.deepcopy(copy.deepcopy(model)),
    )
    for other in copies:
        assert torch.equal(other(X), y)
        surgery.fold(copy.deepcopy(other))
        surgery.undo(other)
        assert photograph(other)["bits"] == original["bits"]
        assert not any(isinstance(module, Adapted) for module in other.modules())
        tally["cases"] += 1
    assert torch.equal(model(X), y)


SCRIPT = """
import sys, torch
model = torch.load(sys.argv[1], weights_only=False)
x, y = torch.load(sys.argv[2])
assert torch.equal(model(x), y)
import surgery
surgery.fold(model)
torch.save(model.state_dict(), sys.argv[3])
"""


def test_a_whole_model_opens_in_a_fresh_process(tmp_path: Path, tally: Tally) -> None:
    """The subclasses that carry adapters are in no module; the pickle makes them again."""
    model = adapted("srlora")
    torch.save(model, tmp_path / "model")
    torch.save((X, model(X).detach()), tmp_path / "data")
    files = [str(tmp_path / name) for name in ("model", "data", "folded")]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", SCRIPT, *files], check=True, env=env)
    surgery.fold(model)
    folded = torch.load(tmp_path / "folded")
    assert all(torch.equal(folded[key], value) for key, value in model.state_dict().items())
    tally["cases"] += 1


class Features(Dataset[Tensor]):
    """A model inside a data set, as a frozen teacher or a feature extractor is."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __len__(self) -> int:
        return 4

    @torch.no_grad()
    def __getitem__(self, index: int) -> Tensor:
        return self.model(X)


@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_workers_of_a_data_loader(how: str, tally: Tally) -> None:
    model = adapted("lora", BARE)
    loader = DataLoader(Features(model), num_workers=1, multiprocessing_context=how)
    for y in loader:
        assert torch.equal(y[0], model(X))
        tally["cases"] += 1


def _cycle(model: nn.Module, count: int) -> None:
    for seed in range(count):
        surgery.apply(model, plan=plan_of(WHOLE, KINDS[seed % len(KINDS)]), seed=seed)
        (surgery.undo if seed % 4 else surgery.fold)(model)


def _left() -> tuple[int, int, int]:
    """Tensors, objects and traced bytes alive after a collection."""
    gc.collect()
    alive = gc.get_objects()
    tensors = sum(issubclass(type(o), Tensor) for o in alive)
    return tensors, len(alive), tracemalloc.get_traced_memory()[0]


def test_a_thousand_cycles_leave_nothing_behind(tally: Tally) -> None:
    """A leak grows in every stretch of cycles; a table that doubles once, in one only."""
    model, cycles = build(WHOLE), times(20)
    tracemalloc.start()
    _cycle(model, 12)
    growth: list[list[int]] = []
    before = _left()
    while len(growth) < 4 and not (growth and _none(growth[-1])):
        _cycle(model, cycles)
        after = _left()
        growth.append([new - old for new, old in zip(after, before, strict=True)])
        before = after
    tracemalloc.stop()
    assert _none(growth[-1]), growth
    tally["cycles"] += 12 + len(growth) * cycles


def _none(growth: list[int]) -> bool:
    tensors, objects, size = growth
    return tensors <= 0 and objects < 10 and size < 5_000


@pytest.mark.parametrize("finish", [surgery.undo, surgery.fold])
def test_adapters_are_freed(finish) -> None:
    """No cycle of references keeps them until the collector comes."""
    model = adapted("srlora")
    gc.collect()
    gc.disable()
    try:
        gone = [weakref.ref(m) for m in model.modules() if "surgery.adapters" in type(m).__module__]
        finish(model)
        assert gone and all(ref() is None for ref in gone)
    finally:
        gc.enable()


def test_operations_in_one_thread_and_inference_in_another(tally: Tally) -> None:
    """On different models, bit for bit; the plans are made before (docs/trust.md says why)."""
    other, mine = adapted("srlora"), build(WHOLE)
    with torch.no_grad():
        expected = other(X)
    wrong: list[object] = []
    done = threading.Event()

    def infer() -> None:
        with torch.no_grad():
            while not done.is_set():
                try:
                    if not torch.equal(other(X), expected):
                        wrong.append("other values")
                except BaseException as error:
                    wrong.append(error)
                tally["cases"] += 1

    plans = [plan_of(WHOLE, kind) for kind in KINDS]
    thread = threading.Thread(target=infer)
    thread.start()
    try:
        for seed in range(times(30)):
            surgery.apply(mine, plan=plans[seed % 3], seed=seed)
            surgery.undo(mine)
    finally:
        done.set()
        thread.join()
    assert wrong == []
    assert photograph(mine)["bits"] == photograph(build(WHOLE))["bits"]


def test_two_threads_read_and_apply_one_after_the_other(tally: Tally) -> None:
    """torch.export is not made for two threads: we let one in at a time."""
    found: list[object] = []

    def work() -> None:
        try:
            model = surgery.apply(build(WHOLE), POLICY, example_inputs=X, adapter="lora", rank=2)
            found.append(len(surgery.summary(model).__dict__) > 0)
        except BaseException as error:
            found.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 3
    tally["cases"] += 3
