"""Out of memory, or an interrupt, at any tensor operation: the model is bit for bit as before."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from torch import nn

import surgery
from tests.trust.architectures import build, inputs
from tests.trust.conftest import Tally
from tests.trust.faults import TensorFaults
from tests.trust.promises import photograph
from tests.trust.settings import times
from tests.trust.small import BARE, POLICY, WHOLE, adapted, disturb, plan_of, step

KINDS = ("lora", "symlora", "srlora", "polar", "sym-srlora")
X = inputs(WHOLE)


Made = TypeVar("Made")


def _boundaries(make: Callable[[], Made], work: Callable[[Made], object], share: int) -> range:
    """Every step of ``work``, or an even share of them."""
    made = make()
    with TensorFaults(None) as faults:
        work(made)
    count = faults.steps.count
    assert count > 0
    return range(0, count, max(1, count // times(share)))


def _everywhere(
    make: Callable[[], nn.Module],
    work: Callable[[nn.Module], object],
    tally: Tally,
    errors: type[BaseException] | tuple[type[BaseException], ...] = MemoryError,
    share: int = 12,
) -> None:
    error = errors if isinstance(errors, type) else MemoryError
    for at in _boundaries(make, work, share):
        model = make()
        before = photograph(model)
        with TensorFaults(at, error), pytest.raises(errors):
            work(model)
        assert photograph(model) == before, f"step {at}"
        tally["faults"] += 1


@pytest.mark.parametrize("architecture", [WHOLE, BARE], ids=["module", "parameter"])
@pytest.mark.parametrize("kind", KINDS)
def test_apply(kind: str, architecture, tally: Tally) -> None:
    plan = plan_of(architecture, kind)
    _everywhere(lambda: build(architecture), lambda m: surgery.apply(m, plan=plan), tally)


@pytest.mark.parametrize("kind", KINDS)
def test_fold(kind: str, tally: Tally) -> None:
    """The comparison of outputs included: a hook that fails in it takes the fold back."""
    _everywhere(lambda: adapted(kind), lambda m: surgery.fold(m, check_inputs=X), tally, share=20)


def test_fold_interrupted(tally: Tally) -> None:
    _everywhere(lambda: adapted("srlora"), surgery.fold, tally, KeyboardInterrupt)


@pytest.mark.parametrize("kind", ["lora", "sym-srlora"])
@pytest.mark.parametrize("onto", ["plain", "adapted"])
def test_load(kind: str, onto: str, tmp_path: Path, tally: Tally) -> None:
    path = surgery.save(disturb(adapted(kind)), tmp_path / "a.safetensors")

    def make() -> nn.Module:
        return build(WHOLE) if onto == "plain" else adapted(kind)

    # torch wraps what happens in load_state_dict in a RuntimeError, reading a file in ours.
    errors = (MemoryError, RuntimeError, surgery.CheckpointError)
    _everywhere(make, lambda model: surgery.load(model, path), tally, errors, share=25)


@pytest.mark.parametrize("kind", ["srlora", "sym-srlora"])
def test_recompose(kind: str, tally: Tally) -> None:
    """Model, gradients, optimizer state and schedule are as before; the same call then succeeds."""

    def make() -> tuple[nn.Module, torch.optim.Optimizer, surgery.Recomposer]:
        model = adapted(kind)
        optimizer = torch.optim.AdamW(surgery.parameter_groups(model), lr=1e-3)
        recomposer = surgery.Recomposer(model, optimizer, total_steps=4)
        step(model, X)
        optimizer.step()
        return model, optimizer, recomposer

    def switch(recomposer: surgery.Recomposer) -> None:
        assert recomposer.step() is not None

    _, _, due = make()
    while not due._is_due(next(iter(due._adapters.values()))):
        due.steps += 1

    def ready() -> tuple[nn.Module, torch.optim.Optimizer, surgery.Recomposer]:
        made = make()
        made[2].steps = due.steps
        return made

    expected = ready()
    switch(expected[2])
    for at in _boundaries(ready, lambda made: switch(made[2]), 25):
        model, optimizer, recomposer = ready()
        before, memory = photograph(model), copy.deepcopy(optimizer.state_dict())
        with TensorFaults(at), pytest.raises(MemoryError):
            recomposer.step()
        assert photograph(model) == before, f"step {at}"
        assert str(optimizer.state_dict()) == str(memory)
        switch(recomposer)
        assert photograph(model)["bits"] == photograph(expected[0])["bits"]
        assert str(optimizer.state_dict()) == str(expected[1].state_dict())
        tally["faults"] += 1


@pytest.mark.parametrize("kind", KINDS)
def test_undo_that_failed_is_called_again(kind: str, tally: Tally) -> None:
    """Undo has nothing to go back to but the plain model: it can always be finished."""
    original = photograph(build(WHOLE))
    for at in _boundaries(lambda: adapted(kind), surgery.undo, 15):
        model = adapted(kind)
        with TensorFaults(at), pytest.raises(MemoryError):
            surgery.undo(model)
        surgery.undo(model)
        found = photograph(model)
        for same in ("bits", "keys", "flags", "classes", "attributes", "hooks"):
            assert found[same] == original[same]
        tally["faults"] += 1


def test_a_hook_that_fails_in_the_check_of_fold(tally: Tally) -> None:
    model = adapted("lora")
    calls = iter(range(9))

    def fail(*_: object) -> None:
        if next(calls) == 1:
            raise RuntimeError("mine")

    model.out.register_forward_hook(fail)
    before = photograph(model)
    with pytest.raises(RuntimeError, match="mine"):
        surgery.fold(model, check_inputs=X)
    assert photograph(model) == before
    assert torch.equal(model(X), adapted("lora")(X))
    tally["faults"] += 1


def test_a_hook_that_fails_in_the_reading(tally: Tally) -> None:
    model = build(WHOLE)
    model.out.register_forward_hook(lambda *_: 1 / 0)
    before = photograph(model)
    with pytest.raises(surgery.CaptureError):
        surgery.apply(model, POLICY, example_inputs=X)
    assert photograph(model) == before
    tally["faults"] += 1


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_hook_that_fails_in_a_step_of_training(where: str, tally: Tally) -> None:
    """The step can be repeated, and the run is that of one whose hook never failed."""
    ends = []
    for fails in (False, True):
        model = build(WHOLE).train()
        model.norm.eval()  # its running statistics would see the repeated batch twice
        before = photograph(model)
        surgery.apply(model, plan=plan_of(WHOLE, "srlora"), seed=0)
        calls = iter([False, False, fails, *[False] * 99])

        def fail(*_: object, calls=calls) -> None:
            if next(calls):
                raise RuntimeError("mine")

        register = {
            "forward": model.out.register_forward_hook,
            "backward": model.out.register_full_backward_hook,
        }
        hook = register[where](fail)
        tally["faults"] += _train_through(model)
        ends.append(photograph(model)["bits"])
        hook.remove()
        found = photograph(surgery.undo(model))
        assert found["bits"] == before["bits"] and found["classes"] == before["classes"]
    assert ends[0] == ends[1]


def _train_through(model: nn.Module) -> int:
    """Six steps of SRLoRA; one that fails is repeated. How many did."""
    optimizer = torch.optim.SGD(surgery.parameter_groups(model), lr=0.01)
    recomposer = surgery.Recomposer(model, optimizer, total_steps=6)
    failed = 0
    while recomposer.steps < 6:
        optimizer.zero_grad()
        try:
            step(model, X)
        except RuntimeError:
            failed += 1
            continue
        recomposer.step()
        optimizer.step()
    assert recomposer.history
    return failed
