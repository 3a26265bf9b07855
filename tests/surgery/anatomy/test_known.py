"""Models that branch on the values of integers are read for the values at hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import surgery
from policies.roles import Role

WIDTH = 8


class Grid(nn.Module):
    """Attends image by image, as the vision towers do whose images differ in size."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.register_buffer("least", torch.tensor(2))

    def forward(self, patches: Tensor, grid: Tensor) -> Tensor:
        areas = torch.tensor([grid[0].prod(), grid[1].prod()])
        lengths = [max(area, int(self.least)) for area in areas.tolist()]
        order = torch.arange(sum(lengths))
        kept = order[order >= 0]
        parts = self.qkv(patches[kept]).split(lengths)
        attended = [
            F.scaled_dot_product_attention(*part.unsqueeze(0).chunk(3, -1)) for part in parts
        ]
        return self.out(torch.cat(attended, 1))


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor]:
    return torch.randn(10, WIDTH), torch.tensor([[2, 3], [2, 2]])


def test_a_model_that_reads_its_grid_is_read_and_proved(inputs: tuple[Tensor, Tensor]) -> None:
    model = Grid()
    anatomy = surgery.read(model, inputs)
    (site,) = anatomy.sites
    assert site.calls == 2 and not anatomy.unplaced and anatomy.values == "integers"
    assert site.role(Role.KEY)[0].rows == ((WIDTH, 2 * WIDTH, 1),)
    assert surgery.verify(model, anatomy, inputs).proved


def test_nothing_stays_behind(inputs: tuple[Tensor, Tensor]) -> None:
    model, limits = Grid(), (torch._subclasses.fake_tensor, torch.fx.experimental.proxy_tensor)
    before = [module.CONSTANT_NUMEL_LIMIT for module in limits]
    surgery.read(model, inputs)
    assert [module.CONSTANT_NUMEL_LIMIT for module in limits] == before
    assert not model._forward_pre_hooks and model.least.item() == 2


def test_known_integers_still_count_as_inputs() -> None:
    """What an embedding of known ids feeds depends on the user's input: its linears have roles."""

    class Text(Grid):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(5, WIDTH)

        def forward(self, ids: Tensor, grid: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(self.table(ids), grid)

    inputs = (torch.arange(10) % 5, torch.tensor([[2, 3], [2, 2]]))
    model = Text()
    anatomy = surgery.read(model, inputs)
    assert len(anatomy.sites) == 1 and surgery.verify(model, anatomy, inputs).proved
