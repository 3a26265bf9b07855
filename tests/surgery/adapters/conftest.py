"""Every kind of adapter, started on a random weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from surgery.adapters import Adapter, get

Variant = tuple[str, dict[str, Any]]

ZERO_START: list[Variant] = [
    ("lora", {}),
    ("lora", {"init": "gaussian"}),
    ("frozen-a", {}),
    ("symlora", {"rectangular": "truncate"}),
    ("polar", {}),
]
TWIN_START: list[Variant] = [
    ("symlora", {"rectangular": "truncate", "start": "twins"}),
    ("polar", {"start": "twins"}),
]
SINGULAR_START: list[Variant] = [
    ("pissa", {}),
    ("srlora", {}),
    ("polar", {"start": "singular"}),
    ("sym-srlora", {}),
]
RECOMPOSED = ["srlora", "sym-srlora"]


def label(variant: Variant) -> str:
    kind, options = variant
    return "-".join([kind, *options.values()])


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session", params=ZERO_START + TWIN_START + SINGULAR_START, ids=label)
def variant(request: pytest.FixtureRequest) -> Variant:
    return request.param


@pytest.fixture(scope="session", params=ZERO_START, ids=label)
def zero_start(request: pytest.FixtureRequest) -> Variant:
    return request.param


@pytest.fixture(scope="session", params=TWIN_START, ids=label)
def twin_start(request: pytest.FixtureRequest) -> Variant:
    return request.param


@pytest.fixture(scope="session", params=SINGULAR_START, ids=label)
def singular_start(request: pytest.FixtureRequest) -> Variant:
    return request.param


@pytest.fixture(scope="session", params=RECOMPOSED)
def recomposed(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def weight_of() -> Callable[..., Tensor]:
    """A random weight, (out, in)."""

    def make(in_features: int, out_features: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(out_features, in_features, generator=generator) / in_features**0.5

    return make


@pytest.fixture(scope="session")
def started(weight_of: Callable[..., Tensor]) -> Callable[..., Adapter]:
    """An adapter of some kind, started on a random weight."""

    def make(
        kind: str, in_features: int, out_features: int, *, seed: int = 0, **options: Any
    ) -> Adapter:
        adapter = get(kind)(in_features, out_features, **options)
        weight = weight_of(in_features, out_features, seed)
        adapter.start(weight, torch.Generator().manual_seed(seed + 1))
        return adapter

    return make


@pytest.fixture(scope="session")
def trained(started: Callable[..., Adapter]) -> Callable[..., Adapter]:
    """The same, with every trained number moved, as training would."""

    def make(*args: Any, seed: int = 0, **options: Any) -> Adapter:
        adapter = started(*args, seed=seed, **options)
        generator = torch.Generator().manual_seed(seed + 2)
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        return adapter

    return make


@pytest.fixture(scope="session")
def drift() -> Callable[..., float]:
    """Norm of the update that 20 Adam steps of one fixed gradient make, at learning rate 5e-4."""

    def measure(adapter: Adapter) -> float:
        shape = adapter.out_features, adapter.in_features
        gradient = torch.randn(shape, generator=torch.Generator().manual_seed(9))
        before = adapter.delta()
        optimizer = torch.optim.Adam(adapter.parameters(), lr=5e-4)
        for _ in range(20):
            optimizer.zero_grad()
            b, a = adapter.factors()
            ((b @ a) * gradient).sum().backward()
            optimizer.step()
        return float((adapter.delta() - before).norm())

    return measure
