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
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import fully_shard

import surgery
from surgery import Recomposer

STEPS, HALF, BATCH = 6, 3, 4
RECOMPOSING = {"srlora", "sym-srlora"}


class Encoder(nn.Module):
    """Its attention reads weights whose modules it never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, 16, 16, 16), nn.Linear(16, 3)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True) for _ in range(2)
        )

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).mT
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def encoder() -> nn.Module:
    torch.manual_seed(0)
    policy = {
        "select": [{"roles": ["attention.query", "attention.value"]}],
        "adapter": {"kind": "srlora", "rank": 2, "target_rank": 6},
    }
    return surgery.apply(Encoder(), policy, seed=0, example_inputs=torch.randn(2, 3, 32, 32))


def network(adapter: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, embed_dim=16, depth=2, num_heads=2, num_classes=3
    )
    options = {"target_rank": 6} if adapter in RECOMPOSING else {}
    return surgery.apply(net, "vit-attn-qv", adapter=adapter, rank=2, seed=0, **options)


class OnParts(torch.optim.Optimizer):
    """Momentum that knows nothing of shards: it sees this process's part of each tensor."""

    def __init__(self, trained: list[nn.Parameter]) -> None:
        super().__init__(trained, {})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            value, gradient = part(parameter), part(parameter.grad)
            momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(value))
            value -= 0.1 * momentum.mul_(0.9).add_(gradient)


def part(tensor: Tensor) -> Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def sgd(trained: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(trained, lr=0.1, momentum=0.9)


def adamw(trained: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0, foreach=True)


class Training:
    """A loop that may stop and go on, in any number of processes."""

    def __init__(
        self,
        model: nn.Module,
        recomposes: bool,
        prepare: Callable[..., Any] = lambda *both: both,
        optimizer: Callable[..., torch.optim.Optimizer] = sgd,
    ) -> None:
        trained = [p for p in model.parameters() if p.requires_grad]
        self.model, self.optimizer = prepare(model, optimizer(trained))
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
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
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


def sharded(net: nn.Module, blocks: bool = True) -> nn.Module:
    mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
    for block in net.blocks if blocks else ():
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
    done = Training(sharded(network(adapter)), recomposes).run(0, HALF, *share)
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
    done = Training(sharded(network("srlora")), True).load(folder / "srlora-of-one")
    done.run(HALF, STEPS, *share)
    torch.save(whole(done.model), folder / f"from-one-{share[0]}.pt")


@torch.no_grad()
def evaluate(net: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Any, ...]:
    net(torch.randn(2, 3, 32, 32))
    return net, optimizer


def otherwise(folder: Path, *share: int) -> None:
    """Read weights; an evaluation first, which leaves the root whole; other optimizers."""
    read = Training(sharded(encoder()), True).run(0, STEPS, *share)
    torch.save((read.switches(), whole(read.model)), folder / f"read-weights-{share[0]}.pt")
    net = sharded(network("srlora"), blocks=False)
    evaluated = Training(net, True, prepare=evaluate).run(0, STEPS, *share)
    torch.save((evaluated.switches(), whole(net)), folder / f"evaluated-{share[0]}.pt")
    adam = Training(sharded(network("srlora")), True, optimizer=adamw).run(0, STEPS, *share)
    torch.save((adam.switches(), whole(adam.model)), folder / f"adamw-{share[0]}.pt")
    parts = Training(sharded(network("srlora")), True, optimizer=OnParts).run(0, STEPS, *share)
    torch.save((parts.switches(), whole(parts.model)), folder / f"parts-{share[0]}.pt")


def broadcast_load(folder: Path, rank: int) -> None:
    """The state of the first process for all, into a model with another base."""
    state = network("polar").state_dict() if rank == 0 else {}
    net = sharded(network("polar", seed=1))
    how = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(net, state, options=how)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    torch.save(net(images).detach(), folder / f"broadcast-{rank}.pt")


def sharded_later() -> None:
    net = network("srlora")
    recomposer = Recomposer(net, Training(net, False).optimizer, total_steps=STEPS)
    sharded(net)
    recomposer.step()


def optimizer_first() -> None:
    net = network("srlora")
    optimizer = Training(net, False).optimizer
    Recomposer(sharded(net), optimizer, total_steps=STEPS)


def parts_into_a_whole(rank: int) -> None:
    """One process alone: nothing may wait for the other."""
    state = sharded(network("srlora")).state_dict()
    if rank == 0:
        network("srlora").load_state_dict(state)


def refusals(folder: Path, rank: int) -> None:
    """What is said to whom."""
    net, other = network("srlora"), network("srlora", seed=rank)
    cases: dict[str, Callable[[], object]] = {
        "disagreement": lambda: Recomposer(
            net, Training(net, False).optimizer, total_steps=6 + rank
        ),
        "other-weights": lambda: Training(other, True),
        "sharded-later": sharded_later,
        "optimizer-first": optimizer_first,
        "parts-into-a-whole": lambda: parts_into_a_whole(rank),
    }
    for name, case in cases.items():
        try:
            case()
        except (surgery.StateError, RuntimeError) as error:
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
    otherwise(folder, *share)
    broadcast_load(folder, rank)
    refusals(folder, rank)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
