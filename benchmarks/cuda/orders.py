"""One adapted linear layer, forward and backward, in every order of contraction."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

import surgery
from benchmarks.clocks import events
from benchmarks.cuda.placed import PRECISIONS, Precision
from benchmarks.layers import adapted, with_peft
from surgery.adapters import LoRA

TOKENS = (256, 2048, 16384, 65536)
WIDTHS = (384, 768, 2048, 4096)
RANKS = (8, 64)
ORDERS: tuple[Any, ...] = ("auto", "low-rank", "merged", "plain")
ROUNDS, AIM = 3, 3e-3
"""Turns of each layer, and the seconds that one takes at least."""
Pass = Callable[[], object]


def rows(device: str, depth: int) -> Iterator[dict[str, Any]]:
    """Times over the frozen layer's; ``depth`` does not matter but to shorten a rehearsal."""
    tokens, widths = (TOKENS, WIDTHS) if depth > 1 else (TOKENS[:1], WIDTHS[:1])
    order = ("bf16 weights, autocast", "bf16 weights", "fp32")
    for name, width, n, rank in product(order, widths, tokens, RANKS):
        yield {"precision": name, "width": width, "tokens": n, "rank": rank} | ratios(
            PRECISIONS[name], width, n, rank, device
        )


def ratios(precision: Precision, width: int, n: int, rank: int, device: str) -> dict[str, Any]:
    """Microseconds of the frozen layer, and the median of each other's time over it in a turn."""
    x = torch.randn(n, width, device=device, dtype=precision.weights, requires_grad=True)
    wide = torch.bfloat16 if precision.autocast else precision.weights
    g = torch.randn(n, width, device=device, dtype=wide)
    linear = nn.Linear(width, width, device=device, dtype=precision.weights).requires_grad_(False)
    ours = adapted(linear, [(0, width)], partial(LoRA, rank=rank))
    layers: dict[str, nn.Module] = {"frozen": linear, "peft": with_peft(linear, rank)}
    calls = {name: partial(run, layer, x, g, precision, device) for name, layer in layers.items()}
    calls |= {order: partial(ordered, order, ours, x, g, precision, device) for order in ORDERS}
    times = turns(calls, device)
    surgery.set_contraction("auto")
    base = times.pop("frozen")
    found = {
        name: round(statistics.median(t / f for t, f in zip(own, base, strict=True)), 3)
        for name, own in times.items()
    }
    return {"frozen_us": round(1e6 * statistics.median(base), 1)} | found


def turns(calls: Mapping[str, Pass], device: str) -> dict[str, list[float]]:
    """Seconds of each call, one after the other, as many in a row as last long enough."""
    for call in calls.values():
        call()
    times = {name: max(1, min(20, round(AIM / events(c, device)))) for name, c in calls.items()}
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            found[name].append(events(call, device, times[name]))
    return found


def run(layer: nn.Module, x: Tensor, g: Tensor, precision: Precision, device: str) -> None:
    """Forward, and the gradients of the input and of all that trains."""
    with precision.context(device)():
        y = layer(x)
    trained = [p for p in layer.parameters() if p.requires_grad]
    torch.autograd.grad(y, [x, *trained], g)


def ordered(order: Any, layer: nn.Module, *rest: Any) -> None:
    """The same, in some order."""
    surgery.set_contraction(order)
    run(layer, *rest)
