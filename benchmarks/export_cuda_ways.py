"""The ways to run a model on a GPU in half precision, each ready to be called."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import exporters
from benchmarks.bound import Bound, best_options
from benchmarks.clocks import Budget
from benchmarks.export import attention_operators, plain_export
from benchmarks.export_subjects import SUBJECTS
from exporters.inputs import Inputs
from exporters.providers import CPU, CUDA, TENSORRT
from exporters.recipe import Target
from exporters.runtime import available

EAGER, COMPILED, REDUCED = "torch eager", "torch.compile", "torch.compile, reduce-overhead"
PLAIN, OURS, ENGINE = "plain dynamo export", "ours", "ours, TensorRT"
RECORDED = ", CUDA graph"
WAYS = (EAGER, COMPILED, REDUCED, PLAIN, PLAIN + RECORDED, OURS, OURS + RECORDED, ENGINE)
WARM = 10

Call = Callable[[], Tensor]
Figures = dict[str, Any]


@dataclass(frozen=True)
class Made:
    """A model, and the files made of it.

    Attributes:
        model: In fp32 on the device.
        half: In fp16 on the device.
        inputs: Inputs at batch 2 on the CPU.
        files: By way.
        about: Sites and operators, and what failed.
    """

    model: nn.Module
    half: nn.Module
    inputs: Inputs
    files: dict[str, Path]
    about: Figures


def prepare(name: str, folder: Path, device: torch.device) -> Made:
    """Build a model and make its files."""
    torch.manual_seed(0)
    subject = SUBJECTS[name]
    model = subject.build().eval()
    inputs = subject.inputs(model)
    about: Figures = {"failures": {}, "operators": {}, "seconds": {}}
    halves = inputs.on(torch.device("cpu"), torch.float16)
    ways = {PLAIN: partial(plain_export, copy.deepcopy(model).half(), halves)}
    ways[OURS] = partial(_ours, model, inputs, "cuda", about)
    if _here().providers[0] == TENSORRT:
        ways[ENGINE] = partial(_ours, model, inputs, "tensorrt", about)
    files = {}
    for number, (way, make) in enumerate(ways.items()):
        path, started = folder / f"{name}.{number}.onnx", time.monotonic()
        try:
            make(path)
            about["operators"][way] = attention_operators(path, best_options(path))
            files[way] = path
        except Exception as error:  # whatever a tool raises is its result
            about["failures"][way] = line(error)
        about["seconds"][way] = round(time.monotonic() - started, 1)
    half = copy.deepcopy(model).half().to(device)
    return Made(model.to(device), half, inputs, files, about)


def _here() -> exporters.SessionOptions:
    """The providers of this machine, best first."""
    return available(exporters.SessionOptions((TENSORRT, CUDA, CPU)))


def _ours(model: nn.Module, inputs: Inputs, target: Target, about: Figures, path: Path) -> None:
    report = exporters.to_onnx(
        model, path, target=target, precision="fp16", example_inputs=inputs.kwargs
    )
    if target == "cuda":
        about |= {"sites": f"{report.fused}/{len(report.sites)}", "notes": list(report.notes)}


def contenders(
    made: Made, inputs: Inputs, shapes: list[torch.Size], budget: Budget, compiled: bool
) -> tuple[dict[str, Call], dict[str, str]]:
    """Every way at one size, warmed up; and why others are missing."""
    half = inputs.on(next(made.half.parameters()).device, torch.float16)
    ways: dict[str, Callable[[], Call]] = {EAGER: lambda: partial(_first, made.half, half)}
    if compiled:
        ways[COMPILED] = lambda: partial(_first, _compile(made.half, "default"), half)
        ways[REDUCED] = lambda: partial(_marked, _compile(made.half, "reduce-overhead"), half)
    for way, path in made.files.items():
        ways[way] = partial(Bound, path, inputs.tensors, shapes)
        if way != ENGINE:
            ways[way + RECORDED] = partial(Bound, path, inputs.tensors, shapes, graph=True)
    ready, failures = {}, {}
    for way, make in ways.items():
        try:
            budget.check(40 if way in {COMPILED, REDUCED} else 0)
            call = make()
            for _ in range(WARM):
                call()
            ready[way] = call
        except Exception as error:  # whatever a tool raises is its result
            failures[way] = line(error)
    return ready, failures


def _compile(model: nn.Module, mode: str) -> Callable[..., Any]:
    return torch.compile(model, mode=mode, dynamic=False)


def _first(model: Callable[..., Any], inputs: Inputs) -> Tensor:
    return leaves(model(**inputs.kwargs))[0]


def _marked(model: Callable[..., Any], inputs: Inputs) -> Tensor:
    """A replay overwrites the outputs of the one before it only where it is told that they were read."""
    torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
    return _first(model, inputs)


def leaves(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def line(error: Exception) -> str:
    """What went wrong, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
