"""Small models of every kind that operations must handle, and the states to compare them by."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from surgery.anatomy.read import read
from surgery.anatomy.types import Anatomy
from surgery.operations.apply import apply

WIDTH, HEADS = 16, 2


class Attention(nn.Module):
    """Fused projection, called as a module or read by its weight (as timm's BEiT does)."""

    def __init__(self, by_weight: bool) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.by_weight = by_weight

    def forward(self, x: Tensor) -> Tensor:
        packed = F.linear(x, self.qkv.weight, self.qkv.bias) if self.by_weight else self.qkv(x)
        q, k, v = packed.unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, by_weight: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = Attention(by_weight)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Net(nn.Module):
    """Two blocks, running statistics, a head: (B, T, WIDTH) -> (B, 5)."""

    def __init__(self, by_weight: bool = False) -> None:
        super().__init__()
        self.by_weight = by_weight
        self.blocks = nn.ModuleList(Block(by_weight) for _ in range(2))
        self.norm = nn.BatchNorm1d(WIDTH)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x.mean(1)))


@pytest.fixture(params=["module", "parameter"])
def net(request: pytest.FixtureRequest) -> Net:
    """A small transformer whose fused projection is read either way; flags are mixed on purpose."""
    torch.manual_seed(0)
    model = Net(by_weight=request.param == "parameter")
    model.norm.bias.requires_grad_(False)
    return model.eval()


@pytest.fixture
def make_net() -> Callable[..., Net]:
    def make(by_weight: bool = False, seed: int = 0) -> Net:
        torch.manual_seed(seed)
        return Net(by_weight).eval()

    return make


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 6, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def anatomies() -> dict[bool, Anatomy]:
    example = torch.zeros(2, 6, WIDTH)
    return {by_weight: read(Net(by_weight), example) for by_weight in (False, True)}


Adapt = Callable[..., Net]


@pytest.fixture
def adapt(anatomies: dict[bool, Anatomy]) -> Adapt:
    """Apply a policy (query and value by default) to a ``Net`` without reading it again."""

    def run(model: Net, policy: object = None, **overrides: object) -> Net:
        asked = {"select": [{"roles": ["attention.query", "attention.value"]}], "adapter": "lora"}
        return apply(model, policy or asked, anatomy=anatomies[model.by_weight], **overrides)

    return run


Photograph = Callable[[nn.Module], dict[str, object]]


@pytest.fixture
def photograph() -> Photograph:
    """Everything that an operation could leave behind on a model, comparable with ``==``."""

    def take(model: nn.Module) -> dict[str, object]:
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        return {
            "bits": {k: t.detach().numpy().tobytes() for k, t in tensors.items()},
            "keys": list(model.state_dict()),
            "identity": {name: id(p) for name, p in model.named_parameters()},
            "flags": {name: p.requires_grad for name, p in model.named_parameters()},
            "modes": {path: m.training for path, m in model.named_modules()},
            "classes": {path: type(m) for path, m in model.named_modules()},
            "attributes": {path: sorted(vars(m)) for path, m in model.named_modules()},
            "hooks": {
                path: len(m._load_state_dict_post_hooks) for path, m in model.named_modules()
            },
            "children": {path: list(m._modules) for path, m in model.named_modules()},
        }

    return take


@pytest.fixture
def train() -> Callable[[nn.Module, Tensor], None]:
    """Two optimizer steps in training mode, on everything that trains."""

    def run(model: nn.Module, x: Tensor) -> None:
        model.train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
        for _ in range(2):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
        model.eval()

    return run
