"""An adapter of another package, found by its entry point: planned, trained, saved, loaded, folded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import surgery
from surgery.adapters import names, registry
from tests.trust.architectures import build, inputs
from tests.trust.small import WHOLE

SOURCE = '''
import torch
from torch import nn
from surgery.adapters import Adapter

class Diagonal(Adapter):
    """dW = B diag(d) A with B and A fixed at random."""

    def __init__(self, in_features, out_features, *, spread=1.0, device=None, dtype=torch.float32, **options):
        super().__init__(in_features, out_features, **options)
        self.spread = spread
        self.register_buffer("B", torch.empty(out_features, self.rank, device=device, dtype=dtype))
        self.register_buffer("A", torch.empty(self.rank, in_features, device=device, dtype=dtype))
        self.d = nn.Parameter(torch.empty(self.rank, device=device, dtype=dtype))

    @torch.no_grad()
    def start(self, weight, generator=None):
        self.B.copy_(torch.randn(self.B.shape, generator=generator) * self.spread)
        self.A.copy_(torch.randn(self.A.shape, generator=generator) * self.spread)
        self.d.zero_()

    def factors(self):
        return self.B * self.d, self.A
'''


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A package on the path with the metadata that an installer writes."""
    (tmp_path / "their_adapters.py").write_text(SOURCE, encoding="utf-8")
    about = tmp_path / "their_adapters-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: their-adapters\nVersion: 1.0\n")
    points = "[model_surgery.adapters]\ndiagonal = their_adapters:Diagonal\n"
    (about / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "_KINDS", dict(registry._KINDS))
    registry._load_entry_points.cache_clear()
    yield
    registry._load_entry_points.cache_clear()


@pytest.mark.usefixtures("installed")
def test_it_is_an_adapter_like_ours(tmp_path: Path) -> None:
    assert "diagonal" in names()
    x, model = inputs(WHOLE), build(WHOLE)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    policy = {
        "select": [{"roles": ["attention.query", "attention.value"]}],
        "adapter": {"kind": "diagonal", "rank": 3, "spread": 0.5},
    }
    y = model(x)
    surgery.apply(model, policy, example_inputs=x, seed=0)
    assert torch.equal(model(x), y)
    optimizer = torch.optim.SGD(surgery.parameter_groups(model), lr=0.01)
    model(x).square().sum().backward()
    optimizer.step()
    trained = model(x)
    assert not torch.equal(trained, y)
    path = surgery.save(model, tmp_path / "adapter.safetensors")
    other = surgery.load(build(WHOLE), path)
    assert torch.equal(other(x), trained)
    assert surgery.fold(other, check_inputs=x).function_drift < 1e-5
    surgery.undo(model)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.usefixtures("installed")
def test_its_options_are_checked_like_ours() -> None:
    x = inputs(WHOLE)
    policy = {
        "select": [{"roles": ["attention.query"]}],
        "adapter": {"kind": "diagonal", "rank": 3, "spred": 0.5},
    }
    with pytest.raises(surgery.PolicyError, match="no option 'spred'"):
        surgery.apply(build(WHOLE), policy, example_inputs=x)
