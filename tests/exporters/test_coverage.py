"""What a report says that verification did not see."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from exporters.capture import capture
from exporters.inputs import collect
from exporters.parity import Truth


class Of(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.function(x, y)


def truth(model: nn.Module, given: object, dynamic: object = True) -> Truth:
    model = model.eval()
    return Truth.of(model, capture(model, collect(model, given, dynamic)))


X = torch.randn(2, 4)


@pytest.mark.parametrize("shape", [(2, 4), (2, 1), ()])
def test_numbers_that_are_one_are_drawn_and_told(shape: tuple[int, ...]) -> None:
    found = truth(Of(torch.mul), (X, torch.full(shape, 7.5)))
    told = "y is 7.5 everywhere in the example: verified on random numbers from there on"
    assert found.notes == (told,)


@pytest.mark.parametrize(
    ("function", "number"),
    [
        (lambda x, y: x * y.sqrt() + (1 - y).sqrt(), 1.0),  # NaN beyond
        (lambda x, y: x * torch.arange(10.0)[y.round().long()], 9.0),  # an error beyond
    ],
)
@pytest.mark.parametrize("dynamic", [True, False])
def test_where_no_other_will_do_the_number_stays(
    function: Callable[..., Tensor], number: float, dynamic: bool
) -> None:
    found = truth(Of(function), (X, torch.full((2, 1), number)), dynamic)
    assert found.notes == (
        f"y is {number:g} everywhere in the example: verified on this number alone",
    )


def test_ids_that_are_one_id_are_told() -> None:
    class Ids(nn.Module):
        def forward(self, ids: Tensor) -> Tensor:
            return ids * 2

    told = "ids is 0 everywhere in the example: verified on this value alone"
    assert truth(Ids(), torch.zeros(2, 3).long()).notes == (told,)


def test_an_axis_that_was_not_varied_is_told() -> None:
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.places = nn.Parameter(torch.randn(24, 3))

        def forward(self, x: Tensor) -> Tensor:
            y = x + self.places[: x.shape[1]]
            if not torch.compiler.is_compiling() and x.shape[1] % 7:
                raise ValueError("no multiple of 7")
            return y

    found = truth(Windows(), torch.randn(2, 21, 3), {"x": {0: "batch", 1: "time"}})
    assert found.notes == ("time was verified at 21 alone",)


@pytest.mark.parametrize(("nested", "padded"), [(True, True), (False, True), (True, False)])
def test_zeros_of_the_fast_path_are_told_where_they_show(nested: bool, padded: bool) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 1, enable_nested_tensor=nested)
    given = {"src": torch.randn(2, 4, 8)}
    if padded:
        given["src_key_padding_mask"] = torch.tensor([[False] * 4, [False, False, True, True]])
    model.eval()
    inputs = collect(model, given, False)
    found = Truth.of(model, capture(model, inputs)) if padded else truth(model, given, False)
    assert any("fast path" in note for note in found.notes) == (nested and padded)
