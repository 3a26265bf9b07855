"""A training writes what it promises, stops where it is told to, and goes on as if it had not stopped."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

import surgery
from surgery.errors import RunError
from surgery.runs import checkpoints
from surgery.runs.feed import feed
from surgery.runs.folder import RunFolder
from surgery.runs.samples import open_data
from surgery.runs.schema import RunSpec
from surgery.runs.trainer import Epochs

from .conftest import Trained, run, spec, vit

BEFORE = signal.getsignal(signal.SIGINT)


def folder(asked: RunSpec) -> RunFolder:
    return RunFolder(Path(asked.output.folder))


def weights(asked: RunSpec) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder(asked).adapter)


def same(one: RunSpec, other: RunSpec) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def signalled(model: nn.Module, step: int) -> nn.Module:
    """Press Ctrl-C during the forward pass number ``step``."""
    calls = iter(range(1, 10_000))

    def press(*_: Any) -> None:
        if model.training and next(calls) == step:
            signal.raise_signal(signal.SIGINT)

    model.register_forward_pre_hook(press)
    return model


def test_a_run_leaves_what_it_promises(trained: Trained) -> None:
    asked, metrics = trained
    there = folder(asked)
    assert json.loads(there.labels.read_text()) == ["blue", "green", "red"]
    assert json.loads(there.metrics.read_text()) == metrics
    assert metrics["steps"] == metrics["planned_steps"] == 8
    assert metrics["validation"]["accuracy"] > 0.6
    losses = [entry["loss"] for entry in metrics["curve"]]
    assert len(losses) == 8 and losses[-1] < losses[0]
    assert not list(there.path.glob(".*")) and not list(there.checkpoints.glob(".*"))


def test_the_adapter_file_is_the_model_that_was_evaluated(trained: Trained) -> None:
    asked, metrics = trained
    again = run(asked)
    model = surgery.load(again.model, folder(asked).adapter).eval()
    feeding = feed(again.data, model, asked)
    batch = feeding.collate([feeding.validation[i] for i in range(len(feeding.validation))])
    labels = batch.pop("labels")
    with torch.no_grad():
        loss = nn.functional.cross_entropy(model(**batch), labels)
    assert float(loss) == pytest.approx(metrics["validation"]["loss"], rel=1e-5)


def test_the_same_file_gives_the_same_weights(trained: Trained, tmp_path: Path) -> None:
    asked = spec(tmp_path / "again", trained[0].data.model_dump())
    run(asked).train()
    assert same(trained[0], asked)


@pytest.mark.parametrize(
    ("forward", "step"),
    [
        (2, 1),  # between two accumulated batches
        (7, 4),  # at the end of an epoch, whose evaluation is still made
        pytest.param(8, 5, marks=pytest.mark.slow),
        pytest.param(13, 7, marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_equals_an_unstopped_one(
    trained: Trained, tmp_path: Path, forward: int, step: int
) -> None:
    asked = spec(tmp_path / "stopped", trained[0].data.model_dump())
    whole = run(asked)
    signalled(whole.model, forward)
    with pytest.raises(KeyboardInterrupt):
        whole.train()
    there = folder(asked)
    assert not there.adapter.exists() and not there.metrics.exists()
    stopped = checkpoints.latest(there.checkpoints)
    assert stopped is not None and checkpoints.step_of(stopped) == step

    metrics = run(asked).train(resume=True)
    assert same(trained[0], asked)
    assert metrics["evaluations"] == trained[1]["evaluations"]
    layers = [json.loads(folder(a).layers.read_text()) for a in (trained[0], asked)]
    assert layers[0] == layers[1]
    assert any(layer["switches"] for layer in layers[0]["layers"].values())


@pytest.mark.slow
def test_bfloat16_trains_and_keeps_fp32_adapters(trained: Trained, tmp_path: Path) -> None:
    asked = spec(tmp_path / "bf16", trained[0].data.model_dump(), precision="bf16")
    metrics = run(asked).train()
    assert metrics["validation"]["loss"] == pytest.approx(trained[1]["validation"]["loss"], abs=0.1)
    assert not same(trained[0], asked)
    assert {tensor.dtype for tensor in weights(asked).values()} >= {torch.float32}


@pytest.mark.slow
def test_it_ends_when_nothing_gets_better(trained: Trained, tmp_path: Path) -> None:
    """At a learning rate of nothing no evaluation is better than the first."""
    asked = spec(
        tmp_path / "early", trained[0].data.model_dump(), optimizer={"lr": 1e-12},
        schedule={"epochs": 5, "early_stop": 1, "evaluate_every": 2, "watch": "accuracy"},
    )  # fmt: skip
    metrics = run(asked).train()
    assert metrics["steps"] == 4 < metrics["planned_steps"] and metrics["kept_step"] == 2


@pytest.mark.parametrize("classes", [2, 7])
def test_a_head_of_other_classes_is_refused_before_anything_is_written(
    trained: Trained, tmp_path: Path, classes: int
) -> None:
    asked = spec(tmp_path / "heads", trained[0].data.model_dump())
    with pytest.raises(RunError, match=rf"gives {classes} numbers.* 3 classes: blue, green, red"):
        run(asked, vit(classes)).train()
    assert not (tmp_path / "heads").exists()


def test_a_training_that_diverges_says_so(trained: Trained, tmp_path: Path) -> None:
    asked = spec(tmp_path / "off", trained[0].data.model_dump())
    off = run(asked)
    calls = iter(range(1, 100))
    off.model.register_forward_hook(lambda *seen: seen[-1] * (1 if next(calls) < 3 else math.nan))
    with pytest.raises(surgery.StateError, match="diverged"):
        off.train()
    assert not folder(asked).adapter.exists()


def test_the_handlers_are_put_back(trained: Trained) -> None:
    assert signal.getsignal(signal.SIGINT) is BEFORE


def test_every_epoch_sees_images_of_its_own_in_every_process(trained: Trained) -> None:
    """accelerate's loader tells the samples their epoch only where it has them to itself."""
    asked, data = trained[0], open_data(trained[0].data, 0)
    samples = feed(data, vit(), asked).train
    state = TrainerState(epoch=1.25)
    Epochs(samples).on_epoch_begin(TrainingArguments(output_dir="."), state, TrainerControl())
    assert samples.epoch == 1
