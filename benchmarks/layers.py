"""What an adapter costs on one projection in training, so exactly that single percents can be told apart.

    python -m benchmarks.layers [--rounds 60] [--only GLOB]

Needs ``pip install peft``. Forward and backward of a frozen linear layer at the sizes that models have it, and
of the same with adapters; ``least`` makes the gradients of the factors and nothing else. Cases take turns. Other
work on the machine can only slow a call down, so a case counts with the lower quartile of its CPU times, on
one thread; the spread is between the odd and the even rounds.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from typing import Any

import peft
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.record import keep
from benchmarks.speed import timed
from benchmarks.speed_least import Least, Spans
from surgery.adapters import Adapter, LoRA, SymLoRA
from surgery.anatomy.types import Access, Layout
from surgery.operations.adapted import dress
from surgery.operations.graft import Graft

RANKS = (8, 64)
CASES = ("least", "peft", "lora", "symlora")


@dataclass(frozen=True)
class Projection:
    """A linear layer as a model calls it; ``parts`` are the channels that get an adapter each, all if empty."""

    name: str
    tokens: int
    width: int
    out: int
    parts: tuple[tuple[int, int], ...] = ()

    @property
    def spans(self) -> Spans:
        """First channel and number of channels of each adapter."""
        return list(self.parts or ((0, self.out),))


def _qkv(name: str, tokens: int, width: int) -> Projection:
    return Projection(name, tokens, width, 3 * width, ((0, width), (2 * width, width)))


PROJECTIONS = (
    _qkv("ViT-S b8, q and v of qkv", 1576, 384),
    Projection("ViT-S b8, up", 1576, 384, 1536),
    Projection("ViT-S b8, down", 1576, 1536, 384),
    _qkv("ViT-S b32, q and v of qkv", 6304, 384),
    _qkv("ViT-B b8, q and v of qkv", 1576, 768),
    Projection("ViT-B b8, up", 1576, 768, 3072),
    Projection("BERT-base b8, query", 1024, 768, 768),
    Projection("BERT-base b8, up", 1024, 768, 3072),
    Projection("MiniLM b8, query", 1024, 384, 384),
    Projection("SmolLM2 b2, query", 1024, 576, 576),
    Projection("SmolLM2 b2, value", 1024, 576, 192),
    Projection("SmolLM2 b2, up", 1024, 576, 1536),
)


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument(
        "--only", default="*", metavar="GLOB", help="projections whose name matches"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    chosen = [projection for projection in PROJECTIONS if fnmatch(projection.name, given.only)]
    rows = [measured(each, rank, given.rounds) for each in chosen for rank in RANKS]
    keep("layers", {"clock": "process_time, one thread", "rounds": given.rounds, "rows": rows})
    table = Table("projection", "r", "frozen", *CASES, "lora / peft", title="over the frozen layer")
    for row in rows:
        cells = (f"{row[name]['overhead']:+.1%} ± {row[name]['spread']:.1%}" for name in CASES)
        share = row["lora"]["overhead"] / row["peft"]["overhead"]
        table.add_row(row["name"], str(row["rank"]), f"{row['ms']} ms", *cells, f"{share:.2f}")
    Console(width=140).print(table)


def measured(projection: Projection, rank: int, rounds: int) -> dict[str, Any]:
    """One row: each case's time over the frozen layer's."""
    x = torch.randn(projection.tokens, projection.width, requires_grad=True)
    g = torch.randn(projection.tokens, projection.out)
    layers = layers_of(projection, rank)
    times: dict[str, list[float]] = {name: [] for name in layers}
    for turn in range(rounds + 2):
        for name, layer in layers.items():
            seconds = timed(partial(step, layer, x, g))
            if turn > 1:
                times[name].append(seconds)
            layer.zero_grad()
            x.grad = None
    found: dict[str, Any] = {"name": projection.name, "rank": rank}
    found["ms"] = round(1e3 * quartile(times["frozen"]), 2)
    for name in CASES:
        halves = [over(times[name][odd::2], times["frozen"][odd::2]) for odd in (0, 1)]
        found[name] = {
            "overhead": round(over(times[name], times["frozen"]), 4),
            "spread": round(abs(halves[0] - halves[1]) / 2, 4),
        }
    return found


def layers_of(projection: Projection, rank: int) -> dict[str, nn.Module]:
    """The frozen layer and every case on a copy of it; PEFT takes the whole of a fused projection."""
    linear = nn.Linear(projection.width, projection.out).requires_grad_(False)
    return {
        "frozen": linear,
        "least": Least(copy.deepcopy(linear), projection.spans, rank),
        "peft": with_peft(linear, rank),
        "lora": adapted(linear, projection.spans, partial(LoRA, rank=rank)),
        "symlora": adapted(
            linear, projection.spans, partial(SymLoRA, rank=rank, rectangular="truncate")
        ),
    }


def with_peft(linear: nn.Linear, rank: int) -> nn.Module:
    """A copy of ``linear`` with PEFT's LoRA on all of it."""
    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=["0"])
    model: Any = peft.get_peft_model(nn.Sequential(copy.deepcopy(linear)), config)
    layer: nn.Module = model.base_model.model[0]
    return layer


def adapted(linear: nn.Linear, spans: Spans, make: Callable[..., Adapter]) -> nn.Module:
    """A copy of ``linear`` with an adapter on each span of its output channels."""
    graft = Graft(Layout.OUT_IN, Access.MODULE, linear.out_features)
    for start, length in spans:
        adapter = make(linear.in_features, length, device=linear.weight.device)
        adapter.start(linear.weight.narrow(0, start, length))
        graft.place(f"from {start}", adapter, ((start, start + length, 1),))
    return dress(copy.deepcopy(linear), {"weight": graft})


def step(layer: nn.Module, x: Tensor, g: Tensor) -> None:
    """A forward and a backward."""
    layer(x).backward(g)


def quartile(times: Sequence[float]) -> float:
    """The lower one."""
    return statistics.quantiles(times, n=4)[0]


def over(times: Sequence[float], base: Sequence[float]) -> float:
    """How much more time ``times`` took than ``base``."""
    return quartile(times) / quartile(base) - 1


if __name__ == "__main__":
    main()
