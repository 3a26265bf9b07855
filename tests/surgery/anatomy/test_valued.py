"""Models whose shapes or branches follow from computed numbers are read for the call at hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import surgery
from policies.roles import Role
from surgery.anatomy.capture import capture
from surgery.errors import CaptureError

WIDTH, HALF = 8, 4


class Pruned(nn.Module):
    """Attends to the tokens that a score keeps, and takes another way where there are few."""

    def __init__(self) -> None:
        super().__init__()
        self.score, self.qkv = nn.Linear(WIDTH, 1), nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        kept = x[self.score(x).squeeze(-1) > 0]
        if kept.mean() > 1e6:
            return kept
        q, k, v = (
            part.view(1, -1, 2, HALF).transpose(1, 2) for part in self.qkv(kept).chunk(3, -1)
        )
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, WIDTH)
        return self.out(attended)


@pytest.fixture
def model() -> Pruned:
    torch.manual_seed(0)
    return Pruned()


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(4, 6, WIDTH, generator=torch.Generator().manual_seed(0))


def test_it_is_read_and_proved(model: Pruned, inputs: Tensor) -> None:
    anatomy = surgery.read(model, inputs)
    (site,) = anatomy.sites
    assert site.role(Role.KEY)[0].rows == ((WIDTH, 2 * WIDTH, 1),) and not anatomy.unplaced
    assert surgery.verify(model, anatomy, inputs).proved
    assert [p.module for p in anatomy.others] == ["score"]


def test_the_reading_says_that_it_holds_for_these_inputs(model: Pruned, inputs: Tensor) -> None:
    anatomy = surgery.read(model, inputs)
    assert anatomy.values == anatomy.to_dict()["values"] == "all"
    assert "as these inputs run it" in " ".join(str(anatomy).split())
    assert surgery.read(nn.Linear(2, 2), torch.randn(2, 2)).values == "any"


def test_sizes_are_the_numbers_that_were_seen(model: Pruned, inputs: Tensor) -> None:
    program = capture(model, (inputs,), values="all")
    values = [node.meta.get("val") for node in program.graph.nodes]
    shapes = [tuple(value.shape) for value in values if isinstance(value, Tensor)]
    tokens = int((model.score(inputs) > 0).sum())
    assert all(type(size) is int for shape in shapes for size in shape)
    assert 0 < tokens < 24 and (tokens, 3 * WIDTH) in shapes


def test_an_adapter_on_it_trains(model: Pruned, inputs: Tensor) -> None:
    before = model(inputs)
    surgery.apply(model, "vit-attn-qv", example_inputs=inputs)
    assert torch.equal(model(inputs), before)
    model(inputs).sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())


def test_without_values_it_is_refused_with_the_line(inputs: Tensor) -> None:
    with torch.device("meta"):
        model = Pruned()
    with pytest.raises(CaptureError, match="Pruned") as caught:
        surgery.read(model, inputs.to("meta"))
    assert "forward" in str(caught.value)


def test_torch_is_left_as_it_was(model: Pruned, inputs: Tensor) -> None:
    config, check = torch._functorch.config, torch._export.utils.insert_deferred_runtime_asserts
    surgery.read(model, inputs)
    assert config.fake_tensor_propagate_real_tensors is False
    assert torch._export.utils.insert_deferred_runtime_asserts is check


class Chosen(nn.Module):
    """Takes the expert that a number names, marks places by lists of numbers, joins numbers (Switch, UDOP, Qwen)."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(WIDTH, 3)
        self.experts = nn.ModuleDict({f"expert_{i}": nn.Linear(WIDTH, WIDTH) for i in range(3)})

    def forward(self, x: Tensor) -> Tensor:
        scores = self.score(x.mean(0))
        best = scores.argmax()
        seen = torch.zeros(2, 3)
        seen[[best.new_ones(())], [best]] = 1.0
        bounds = torch.tensor([0, best, 2], device=x.device, dtype=torch.float32)
        found: Tensor = self.experts[f"expert_{best}"](x) * seen.max() + bounds.sum()
        return found


def test_numbers_that_python_asks_for_are_those_of_the_call() -> None:
    torch.manual_seed(0)
    model, x = Chosen(), torch.randn(5, WIDTH)
    best = int(model.score(x.mean(0)).argmax())
    anatomy = surgery.read(model, x)
    assert {p.module for p in anatomy.others} == {"score", f"experts.expert_{best}"}
