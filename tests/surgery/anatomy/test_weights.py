"""Parts of a weight: which output channels of the parameter a product with them reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import surgery
from policies.roles import Role
from surgery.anatomy.types import Layout, Rows

WIDTH = 16
ROLES = (Role.QUERY, Role.KEY, Role.VALUE)
Parts = Callable[[Tensor], Sequence[Tensor]]


class Parted(nn.Module):
    """Query, key and value by three parts of one parameter."""

    def __init__(self, shape: tuple[int, int], parts: Parts, out_in: bool) -> None:
        super().__init__()
        self.w, self.out = nn.Parameter(torch.randn(shape) / 4), nn.Linear(WIDTH, WIDTH)
        self.parts, self.out_in = parts, out_in

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (F.linear(x, w) if self.out_in else x @ w for w in self.parts(self.w))
        return self.out((q @ k.mT).softmax(-1) @ v)


def thirds(step: int = 1) -> tuple[Rows, ...]:
    if step == 3:
        return tuple(((i, 3 * WIDTH, 3),) for i in range(3))
    return tuple(((i * WIDTH, (i + 1) * WIDTH, 1),) for i in range(3))


ROWS: dict[str, tuple[Parts, bool, tuple[Rows, ...]]] = {
    "every third": (lambda w: [w[i::3] for i in range(3)], True, thirds(3)),
    "from the end": (lambda w: [w[:WIDTH], w[WIDTH:-WIDTH], w[-WIDTH:]], True, thirds()),
    "of a part": (lambda w: (*w[WIDTH:].chunk(2), w[:WIDTH]), True, thirds()[1:] + thirds()[:1]),
    "narrow": (lambda w: [w.narrow(0, i - 48, WIDTH) for i in (0, 16, 32)], True, thirds()),
    "tensor_split": (lambda w: w.tensor_split(3), True, thirds()),
    "turned twice": (lambda w: w.movedim(0, 1).chunk(3, 1), False, thirds()),
    "of the transpose": (lambda w: [w.T[:, i::3] for i in range(3)], False, thirds(3)),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_a_part_are_counted_in_the_whole(name: str) -> None:
    torch.manual_seed(0)
    parts, out_in, rows = ROWS[name]
    model, inputs = Parted((3 * WIDTH, WIDTH), parts, out_in), torch.randn(2, 24, WIDTH)
    anatomy = surgery.read(model, inputs)
    (site,) = anatomy.sites
    assert tuple(site.role(role)[0].rows for role in ROLES) == rows
    assert {site.role(role)[0].layout for role in ROLES} == {Layout.OUT_IN}
    assert surgery.verify(model, anatomy, inputs).proved and not anatomy.unplaced


def test_columns_of_a_weight_that_keeps_its_output_channels_there() -> None:
    torch.manual_seed(0)
    columns: Parts = lambda w: [w[:, :WIDTH], w[:, WIDTH:-WIDTH], w[:, -WIDTH:]]  # noqa: E731
    model, inputs = Parted((WIDTH, 3 * WIDTH), columns, False), torch.randn(2, 24, WIDTH)
    anatomy = surgery.read(model, inputs)
    (site,) = anatomy.sites
    assert tuple(site.role(role)[0].rows for role in ROLES) == thirds()
    assert all(p.layout is Layout.IN_OUT for role in ROLES for p in site.role(role))
    assert surgery.verify(model, anatomy, inputs).proved and not anatomy.unplaced


def test_an_adapter_on_every_third_row_folds_into_these() -> None:
    torch.manual_seed(0)
    parts, out_in, _ = ROWS["every third"]
    model, inputs = Parted((3 * WIDTH, WIDTH), parts, out_in), torch.randn(2, 24, WIDTH)
    policy = {"select": [{"roles": ["attention.query"]}], "adapter": {"kind": "lora", "rank": 2}}
    surgery.apply(model, policy, example_inputs=inputs)
    before = model.w.detach().clone()
    for name, parameter in model.named_parameters():
        if "adapters" in name:
            nn.init.normal_(parameter)
    adapted = model(inputs)
    surgery.fold(model)
    torch.testing.assert_close(model(inputs), adapted)
    changed = (model.w != before).any(1).nonzero().flatten().tolist()
    assert changed == list(range(0, 3 * WIDTH, 3))


def test_a_part_of_the_input_channels_is_no_projection_and_is_told() -> None:
    """Three (in, out) matrices one below the other: no row of the parameter is theirs alone."""
    model = Parted((3 * WIDTH, WIDTH), lambda w: w.chunk(3), False)
    anatomy = surgery.read(model, torch.randn(2, 24, WIDTH))
    assert {p.weight_name for p in anatomy.projections} == {"out.weight"}
    told = [u.why for u in anatomy.unplaced if u.what == "linear"]
    assert told and all("w by other parts" in why for why in told)
