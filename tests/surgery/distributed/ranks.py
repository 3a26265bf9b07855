"""What each process of test_distributed.py runs: torchrun ranks.py FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path

import timm
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

import surgery
from surgery import Recomposer

STEPS, BATCH = 6, 4


def network(adapter: str) -> nn.Module:
    torch.manual_seed(0)
    net = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, embed_dim=16, depth=2, num_heads=2, num_classes=3
    )
    options = {"target_rank": 6} if adapter == "srlora" else {}
    return surgery.apply(net, "vit-attn-qv", adapter=adapter, rank=2, seed=0, **options)


def train(model: nn.Module, recomposes: bool, rank: int, world: int) -> list[int]:
    """Each process learns from its share of every batch; the steps at which pairs were swapped."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    recomposer = Recomposer(model, optimizer, total_steps=STEPS) if recomposes else None
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        x = torch.randn(BATCH, 3, 32, 32, generator=generator)
        y = torch.randint(0, 3, (BATCH,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rank::world]), y[rank::world]).backward()
        if recomposer is not None:
            recomposer.step()
        optimizer.step()
    return [done.step for done in recomposer.history] if recomposer else []


def sharded(adapter: str, world: int) -> nn.Module:
    mesh = dist.device_mesh.init_device_mesh("cpu", (world,))
    net = network(adapter)
    for block in net.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(net, mesh=mesh)


def whole(value: Tensor) -> Tensor:
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    net = network("srlora")
    switches = train(nn.parallel.DistributedDataParallel(net), True, rank, world)
    torch.save({"switches": switches, "state": net.state_dict()}, folder / f"ddp-{rank}.pt")
    try:
        net = network("srlora")
        optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
        Recomposer(net, optimizer, total_steps=STEPS + rank)
    except surgery.StateError as error:
        (folder / f"disagreement-{rank}.txt").write_text(str(error))
    net = sharded("symlora", world)
    train(net, False, rank, world)
    torch.save({name: whole(v) for name, v in net.state_dict().items()}, folder / f"fsdp-{rank}.pt")
    try:
        train(sharded("srlora", world), True, rank, world)
    except surgery.StateError as error:
        (folder / f"refusal-{rank}.txt").write_text(str(error))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
