"""One training run on one device."""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import surgery
from benchmarks.study.classifiers import Classifier
from benchmarks.study.controls import register_kinds
from benchmarks.study.methods import METHODS, Given
from benchmarks.study.parts import Examples, Parts
from benchmarks.study.replay import replayed
from benchmarks.study.tasks import TASKS, Task
from examples.training import LARGEST_GRADIENT, Recipe, batches

LOSSES_OF = 5
"""Steps whose mean loss is kept as one number."""
MEASURED_ON = 8
"""Batches on which ranks are measured."""
Switches = dict[str, list[tuple[int, list[int]]]]
"""Of each adapter: step and swapped pairs, in the order in which they took the next directions."""
_AT_ONCE = {"cuda": 500, "cpu": 32}


@dataclass(frozen=True)
class Run:
    """What is tried: a task, a method, a peak learning rate, a seed and a number of steps."""

    task: str
    method: str
    rate: float
    seed: int
    steps: int


@dataclass(frozen=True)
class Bench:
    """What all runs of a task share: data on the device, and a model that is never trained itself."""

    parts: Parts
    model: Classifier
    anatomy: surgery.Anatomy


@cache
def bench_of(task: str, folder: Path, device: str) -> Bench:
    """Read data and weights, and the model's graph, once in a process."""
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
    parts = Parts.read(folder / f"{task}.safetensors").to(torch.device(device))
    model = TASKS[task].backbone.build(folder, TASKS[task].classes).eval().to(device)
    assert isinstance(model, Classifier)
    with torch.no_grad():
        inputs = model.prepare(parts.train.inputs[:2])
    return Bench(parts, model, surgery.read(model.network, inputs))


def perform(run: Run, folder: Path, device: str, replay: bool = True) -> dict[str, Any]:
    """Train and evaluate; ``replay`` says whether a GPU's steps are captured once."""
    register_kinds()
    task, method = TASKS[run.task], METHODS[run.method]
    bench = bench_of(run.task, folder, device)
    started = time.perf_counter()
    torch.manual_seed(run.seed)
    model = copy.deepcopy(bench.model)
    _fresh_head(model.head)
    head = sum(p.numel() for p in model.head.parameters())
    given = Given(
        model.network,
        bench.anatomy,
        task.backbone.modules,
        run.seed,
        partial(_some_batches, bench, task, run.seed),
    )
    model.network = method.prepare(given)
    recipe = Recipe(run.rate, steps=run.steps, batch=task.batch)
    kind = torch.device(device).type
    rounding = partial(torch.autocast, kind, task.products, task.products is not None)
    with _quick_attention(kind):
        losses, switches = _train(model, bench.parts.train, recipe, run, replay, rounding)
    with rounding():
        validation = _accuracy(model, bench.parts.validation)
        test = _accuracy(model, bench.parts.test)
    return {
        **asdict(run),
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "head": head if run.method != "full" else 0,
        "validation": validation,
        "test": test,
        **({"switches": switches} if method.recomposer else {}),
        "losses": [round(loss, 4) for loss in losses.view(-1, LOSSES_OF).mean(1).tolist()],
        "seconds": round(time.perf_counter() - started, 1),
    }


def _quick_attention(kind: str) -> AbstractContextManager[None]:
    """On a CPU the backward pass of fused attention takes some four times as long as that of plain products."""
    return nullcontext() if kind == "cuda" else sdpa_kernel(SDPBackend.MATH)


@torch.no_grad()
def _some_batches(bench: Bench, task: Task, seed: int) -> list[tuple[Tensor, Tensor]]:
    """The first batches of a run, as its network takes them."""
    order = batches(len(bench.parts.train), task.batch, torch.Generator().manual_seed(seed))
    parts = [bench.parts.train[next(order)] for _ in range(MEASURED_ON)]
    return [(bench.model.prepare(part.inputs), part.labels) for part in parts]


@torch.no_grad()
def _fresh_head(head: nn.Linear) -> None:
    """Small random weights of the CPU's generator, so that a seed is the same head on every device."""
    head.weight.copy_(0.02 * torch.randn(head.weight.shape))
    head.bias.zero_()


def _train(
    model: nn.Module,
    examples: Examples,
    recipe: Recipe,
    run: Run,
    replay: bool,
    rounding: Callable[[], torch.autocast],
) -> tuple[Tensor, Switches]:
    """Minimise cross-entropy; the loss of each step's batch, (steps,), and which pairs were swapped when."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    device = parameters[0].device
    optimizer = torch.optim.AdamW(
        parameters, lr=recipe.learning_rate, weight_decay=0.0, fused=device.type == "cuda"
    )
    recomposes = METHODS[run.method].recomposer
    recomposer = recomposes(model, optimizer, total_steps=recipe.steps) if recomposes else None
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, recipe.rate)
    order = batches(len(examples), recipe.batch, torch.Generator().manual_seed(run.seed))
    chosen = torch.stack([next(order) for _ in range(recipe.steps)]).to(device)
    index, losses = chosen[0].clone(), torch.empty(recipe.steps, device=device)

    def backward() -> Tensor:
        with rounding():
            loss = F.cross_entropy(model(examples.inputs[index]).float(), examples.labels[index])
        torch.autograd.backward(loss)
        return loss.detach()

    model.train()
    replay = replay and device.type == "cuda"
    gradients = replayed(backward, parameters) if replay else backward
    for step in range(recipe.steps):
        index.copy_(chosen[step])
        losses[step] = gradients()
        if recomposer is not None:
            recomposer.step()
        nn.utils.clip_grad_norm_(parameters, LARGEST_GRADIENT)
        optimizer.step()
        if not replay:
            optimizer.zero_grad()
        schedule.step()
    model.eval()
    return losses.cpu(), _switches(recomposer)


def _switches(recomposer: surgery.Recomposer | None) -> Switches:
    found: Switches = defaultdict(list)
    for done in recomposer.history if recomposer else ():
        for adapter, pairs in done.places.items():
            found[adapter].append((done.step, list(pairs)))
    return dict(found)


@torch.no_grad()
def _accuracy(model: nn.Module, examples: Examples) -> float:
    right = torch.zeros((), device=examples.labels.device)
    at_once = _AT_ONCE[examples.labels.device.type]
    for start in range(0, len(examples), at_once):
        part = examples[slice(start, start + at_once)]
        right += (model(part.inputs).argmax(1) == part.labels).sum()
    return right.item() / len(examples)
