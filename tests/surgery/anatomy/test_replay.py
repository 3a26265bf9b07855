"""A replayed run is the run itself, with less computed."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from surgery.anatomy.replay import Replay
from surgery.anatomy.runtime import watch

WIDTH = 8


class Counted(nn.Linear):
    """A linear that counts its calls."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = Counted(WIDTH, 3 * WIDTH), Counted(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(F.scaled_dot_product_attention(*self.qkv(x).chunk(3, -1)))


def blocks(count: int = 5) -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(*(Block() for _ in range(count))).eval(), torch.randn(2, 6, WIDTH)


def moved(model: nn.Module, weight: Tensor, call: Any, stop: int) -> tuple[list[Any], list[Any]]:
    """Events of a replayed and of a whole run with ``weight`` changed."""
    replay = Replay(model, call)
    start = replay.start([weight], stop)
    assert replay.faithful
    with torch.no_grad():
        weight.add_(1)
    return replay.run(start, stop), watch(call, stop)


@pytest.mark.parametrize("index", range(5))
def test_a_replay_sees_what_a_whole_run_sees(index: int) -> None:
    model, x = blocks()
    weight = model[index].qkv.weight
    replayed, whole = moved(model, weight, lambda: model(x), 6)
    assert len(replayed) == len(whole) == 5
    assert all(one.equals(other) for one, other in zip(replayed, whole, strict=True))


def test_what_comes_before_is_not_computed_again() -> None:
    model, x = blocks()
    replay = Replay(model, lambda: model(x))
    start = replay.start([model[3].qkv.weight], 5)
    for block in model:
        block.qkv.calls = 0
    replay.run(start, 5)
    assert [block.qkv.calls for block in model] == [0, 0, 0, 1, 1]


def test_the_model_is_left_as_it_was() -> None:
    model, x = blocks()
    own = model[1].forward = model[1].forward  # as accelerate's hooks leave it
    replay = Replay(model, lambda: model(x))
    replay.run(replay.start([model[0].out.weight], 2), 2)
    routed = [module for module in model.modules() if "forward" in module.__dict__]
    assert routed == [model[1]] and model[1].__dict__["forward"] is own


def test_a_tied_weight_counts_from_its_first_use() -> None:
    model, x = blocks()
    model[4].qkv.weight = model[1].qkv.weight
    replayed, whole = moved(model, model[4].qkv.weight, lambda: model(x), 6)
    assert all(one.equals(other) for one, other in zip(replayed, whole, strict=True))


class Remembering(nn.Module):
    """Keeps in a list of its caller what later layers read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Block(), Block()

    def forward(self, x: Tensor) -> Tensor:
        seen: list[Tensor] = []
        x = self.note(self.first(x), seen)
        return self.second(x + seen[0])

    def note(self, x: Tensor, seen: list[Tensor]) -> Tensor:
        seen.append(x)
        return x


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.relu, self.second = Block(), nn.ReLU(inplace=True), Block()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        self.relu(x)
        return self.second(x)


@pytest.mark.parametrize("kind", [Remembering, InPlace])
def test_modules_with_side_effects_run_again(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = kind().eval(), torch.randn(2, 6, WIDTH)
    replayed, whole = moved(model, model.second.qkv.weight, lambda: model(x), 3)
    assert len(whole) == 2
    assert all(one.equals(other) for one, other in zip(replayed, whole, strict=True))


class Counting(nn.Module):
    """The second block depends on how often the first part wrote into a list of its caller's."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.log = Writer(), Block(), []
        self.first.log = self.log

    def forward(self, x: Tensor) -> Tensor:
        self.log.clear()
        x = self.first(x)
        return self.second(x * len(self.log))


class Writer(Block):
    log: list[int]

    def forward(self, x: Tensor) -> Tensor:
        self.log.extend([1, 2])
        return super().forward(x)


def test_what_a_module_writes_elsewhere_is_missed_and_noticed() -> None:
    model, x = Counting().eval(), torch.randn(2, 6, WIDTH)
    replay = Replay(model, lambda: model(x))
    assert replay.start([model.second.qkv.weight], 3) == 0 and not replay.faithful
    assert len(replay.run(0, 3)) == 2


class Spare(Writer):
    """Leaves a number behind for the second block, and one to spare from the start."""

    def forward(self, x: Tensor) -> Tensor:
        self.log.append(1)
        return Block.forward(self, x)


class Taking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.log = Spare(), Block(), [1]
        self.first.log = self.log

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.second(x * self.log.pop())


def test_state_that_the_control_run_used_up_is_made_anew() -> None:
    model, x = Taking().eval(), torch.randn(2, 6, WIDTH)
    replay = Replay(model, lambda: model(x))
    start = replay.start([model.second.qkv.weight], 3)
    assert start and replay.faithful
    assert len(replay.run(start, 3)) == 2 and not replay.faithful


class Alternating(nn.Module):
    """Takes another way in every second run: no recorded call can stand for the next."""

    def __init__(self) -> None:
        super().__init__()
        self.runs, self.first, self.second = 0, Block(), Block()

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return self.second(self.first(x)) if self.runs % 2 else self.first(self.second(x))


def test_a_model_that_changes_between_runs_is_never_replayed() -> None:
    model, x = Alternating().eval(), torch.randn(2, 6, WIDTH)
    replay = Replay(model, lambda: model(x))
    assert replay.start([model.first.qkv.weight], 3) == 0 and not replay.faithful
    assert len(replay.run(0, 3)) == 2


def test_a_real_architecture_is_replayed() -> None:
    torch.manual_seed(0)
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=64, embed_dim=24, num_heads=(1, 2, 2, 2)
    )
    x = torch.randn(2, 3, 64, 64)
    model.eval()
    weight = model.layers[2].blocks[3].attn.qkv.weight
    replayed, whole = moved(model, weight, lambda: model(x), 10)
    assert all(one.equals(other) for one, other in zip(replayed, whole, strict=True))
