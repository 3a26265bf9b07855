"""What each process of test_distributed.py runs: torchrun ranks.py FOLDER."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, DistributedType, PartialState
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

import surgery
from surgery import Recomposer

STEPS, HALF, BATCH = 6, 3, 4
RECOMPOSING = {"srlora", "sym-srlora"}


def network(adapter: str) -> nn.Module:
    torch.manual_seed(0)
    net = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, embed_dim=16, depth=2, num_heads=2, num_classes=3
    )
    options = {"target_rank": 6} if adapter in RECOMPOSING else {}
    return surgery.apply(net, "vit-attn-qv", adapter=adapter, rank=2, seed=0, **options)


class Training:
    """A loop that may stop and go on, in any number of processes."""

    def __init__(
        self, model: nn.Module, recomposes: bool, prepare: Callable[..., Any] = lambda *both: both
    ) -> None:
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=0.1, momentum=0.9)
        self.model, self.optimizer = prepare(model, optimizer)
        self.recomposer = (
            Recomposer(self.model, self.optimizer, total_steps=STEPS) if recomposes else None
        )

    def run(self, first: int, last: int, rank: int = 0, world: int = 1) -> Training:
        """Each process learns from its share of every batch."""
        generator = torch.Generator().manual_seed(1)
        for step in range(last):
            x = torch.randn(BATCH, 3, 32, 32, generator=generator)
            y = torch.randint(0, 3, (BATCH,), generator=generator)
            if step < first:
                continue
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(x[rank::world]), y[rank::world]).backward()
            if self.recomposer is not None:
                self.recomposer.step()
            self.optimizer.step()
        return self

    def switches(self) -> list[tuple[int, dict[str, tuple[int, ...]]]]:
        """The steps at which pairs were swapped, and which."""
        assert self.recomposer is not None
        return [
            (done.step, {name.removeprefix("module."): at for name, at in done.places.items()})
            for done in self.recomposer.history
        ]

    def save(self, folder: Path) -> None:
        """As users of FSDP2 do: every process its part."""
        dcp.save(self._state(), checkpoint_id=folder)

    def load(self, folder: Path) -> Training:
        """Go on from what any number of processes saved."""
        state = self._state()
        dcp.load(state, checkpoint_id=folder)
        set_state_dict(
            self.model, self.optimizer,
            model_state_dict=state["model"], optim_state_dict=state["optimizer"],
        )  # fmt: skip
        if self.recomposer is not None:
            self.recomposer.load_state_dict(state["recomposer"])
        return self

    def _state(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        recomposer = self.recomposer.state_dict() if self.recomposer is not None else {}
        return {"model": model, "optimizer": optimizer, "recomposer": recomposer}


def sharded(adapter: str) -> nn.Module:
    mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
    net = network(adapter)
    for block in net.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(net, mesh=mesh)


def whole(model: nn.Module) -> dict[str, Tensor]:
    every = model.state_dict().items()
    return {name: v.full_tensor() if hasattr(v, "full_tensor") else v for name, v in every}


def by_ddp(folder: Path, *share: int) -> None:
    net = network("srlora")
    done = Training(nn.parallel.DistributedDataParallel(net), True).run(0, STEPS, *share)
    torch.save((done.switches(), net.state_dict()), folder / f"ddp-{share[0]}.pt")


def by_fsdp(folder: Path, adapter: str, *share: int) -> None:
    """Half, a checkpoint, and the rest."""
    recomposes = adapter in RECOMPOSING
    done = Training(sharded(adapter), recomposes).run(0, HALF, *share)
    done.save(folder / f"{adapter}-of-two")
    done.run(HALF, STEPS, *share)
    switches = done.switches() if recomposes else []
    torch.save((switches, whole(done.model)), folder / f"{adapter}-{share[0]}.pt")


def by_accelerate(folder: Path, way: str, *share: int) -> None:
    """accelerate has FSDP2 for accelerators alone, so it is told that these processors are some."""
    PartialState(cpu=True)
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        cpu_ram_efficient_loading=False,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["Block"],
    )
    if way == "fsdp":
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin if way == "fsdp" else None)
    done = Training(network("srlora"), True, accelerator.prepare).run(0, STEPS, *share)
    assert ("FSDP" in type(done.model).__name__) is (way == "fsdp")
    state = accelerator.get_state_dict(done.model)
    torch.save((done.switches(), state), folder / f"accelerate-{way}-{share[0]}.pt")
    AcceleratorState._reset_state(reset_partial_state=True)


def from_one(folder: Path, *share: int) -> None:
    """Go on with what one process saved."""
    done = Training(sharded("srlora"), True).load(folder / "srlora-of-one")
    done.run(HALF, STEPS, *share)
    torch.save(whole(done.model), folder / f"from-one-{share[0]}.pt")


def refused(folder: Path, name: str, rank: int, total_steps: int, after: bool = False) -> None:
    """What is said to a Recomposer of other ``total_steps``, or one made before the model was sharded."""
    try:
        net = network("srlora")
        training = Training(net, False)
        recomposer = Recomposer(net, training.optimizer, total_steps=total_steps)
        if after:
            fully_shard(net, mesh=dist.device_mesh.init_device_mesh("cpu", (2,)))
            recomposer.step()
    except surgery.StateError as error:
        (folder / f"{name}-{rank}.txt").write_text(str(error))


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    share = rank, _ = dist.get_rank(), dist.get_world_size()
    by_ddp(folder, *share)
    for adapter in ("symlora", "srlora", "sym-srlora"):
        by_fsdp(folder, adapter, *share)
    for way in ("ddp", "fsdp"):
        by_accelerate(folder, way, *share)
    from_one(folder, *share)
    refused(folder, "disagreement", rank, STEPS + rank)
    refused(folder, "sharded-later", rank, STEPS, after=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
