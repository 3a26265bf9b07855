"""Folding a synthetic sharded checkpoint on disk: seconds, and the peak of memory.

    python -m benchmarks.fold_on_disk [--gigabytes 2] [--folder DIR]

Blocks of a language model of 8 billion weights (4096 wide, bfloat16), an adapter of rank 16 on query
and value of every block. Each size runs in a process of its own, for the peak is the process's.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

import surgery
from benchmarks.record import keep

WIDTH, HIDDEN, HEADS = 4096, 14336, 32


class Block(nn.Module):
    """Attention and a gated feed-forward, without norms."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.up, self.gate = (nn.Linear(WIDTH, HIDDEN, bias=False) for _ in range(2))
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) -> the same."""
        q, k, v = (
            m(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for m in (self.q, self.k, self.v)
        )
        x = x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        y: Tensor = x + self.down(F.silu(self.gate(x)) * self.up(x))
        return y


class Stack(nn.Module):
    """Blocks, one after the other."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) -> the same."""
        for block in self.blocks:
            x = block(x)
        return x


def main() -> None:
    """A quarter, a half and the whole of the size asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--folder", default=None, help="where there is room for twice the size")
    given = parser.parse_args()
    rows = []
    for share in (0.25, 0.5, 1.0):
        blocks = max(1, round(share * given.gigabytes * 1e9 / 436e6))
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            alone(write, Path(folder), blocks)
            rows.append(alone(fold, Path(folder), blocks))
        Console().print(rows[-1])
    keep("fold_on_disk", {"clock": "wall, process_time beside it", "rows": rows})


def alone(task: Any, folder: Path, blocks: int) -> Any:
    """Run ``task`` in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(task, (folder, blocks))


def write(folder: Path, blocks: int) -> None:
    """The checkpoint, one shard a block, and an adapter file for it."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = Stack(blocks)
    example = torch.zeros(2, 4, WIDTH)
    source = folder / "base"
    source.mkdir()
    home: dict[str, str] = {}
    for i, block in enumerate(model.blocks):
        name = f"model-{i:05d}.safetensors"
        state = {f"blocks.{i}.{key}": value for key, value in block.state_dict().items()}
        save_file(state, source / name)
        home |= dict.fromkeys(state, name)
    index = json.dumps({"metadata": {}, "weight_map": home})
    (source / "model.safetensors.index.json").write_text(index)
    roles = ["attention.query", "attention.value"]
    policy = {"select": [{"roles": roles}], "adapter": {"kind": "lora", "rank": 16}}
    surgery.apply(model, policy, example_inputs=example)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01)
    surgery.save(model, folder / "adapter")


def fold(folder: Path, blocks: int) -> dict[str, Any]:
    """Fold it; the peak holds the libraries too, which are stated beside it."""
    size = sum(path.stat().st_size for path in (folder / "base").iterdir())
    before, wall, cpu = peak(), time.perf_counter(), time.process_time()
    surgery.fold_checkpoint(folder / "base", folder / "adapter", folder / "new")
    return {
        "blocks": blocks,
        "gigabytes": round(size / 1e9, 2),
        "wall_s": round(time.perf_counter() - wall, 2),
        "cpu_s": round(time.process_time() - cpu, 2),
        "peak_gb": round(peak(), 3),
        "peak_before_gb": round(before, 3),
    }


def peak() -> float:
    """Peak resident memory of this process in gigabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
