"""What torch's exporter cannot translate is captured in words that it can."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import exporters
from exporters.capture import capture
from exporters.inputs import collect
from surgery.errors import CaptureError


class Attention(nn.Module):
    def __init__(self, mask: torch.Tensor | None, **options) -> None:
        super().__init__()
        self.mask, self.options = mask, options

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = {} if self.mask is None else {"attn_mask": self.mask}
        return F.scaled_dot_product_attention(x, x.sin(), x.cos(), **mask, **self.options)


@pytest.mark.parametrize(
    ("shape", "mask"),
    [
        ((2, 5, 4), None),
        ((2, 5, 4), (2, 5, 5)),
        ((2, 5, 4), (5, 5)),
        ((2, 3, 5, 4), (1, 3, 5, 5)),
        ((2, 3, 2, 5, 4), None),
        ((2, 3, 2, 5, 4), (1, 3, 1, 5, 5)),
        ((2, 3, 2, 5, 4), (2, 5, 5)),
        ((2, 3, 2, 2, 5, 4), None),
    ],
)
@pytest.mark.parametrize("options", [{}, {"scale": 0.3}])
def test_attention_is_captured_over_four_dimensions(shape, mask, options):
    torch.manual_seed(0)
    model = Attention(None if mask is None else torch.randn(mask), **options).eval()
    x = torch.randn(shape)
    captured = capture(model, collect(model, x, dynamic=False))
    (node,) = [n for n in captured.program.graph.nodes if "scaled_dot" in str(n.target)]
    assert node.meta["val"].ndim == 4
    torch.testing.assert_close(captured.program.module()(x=x), model(x))


class Remembers(nn.Module):
    """Returns an object that no graph can hold."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, object]:
        return x.sin(), object()


def test_an_output_that_a_file_cannot_hold_is_refused_and_not_left_out():
    with pytest.raises(CaptureError, match="Remembers"):
        capture(Remembers(), collect(Remembers(), torch.randn(2, 4)))


class Squeezes(nn.Module):
    """Asks for a size to go that is not 1, as transducers do where they are given several tokens."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.squeeze(1).squeeze((1, 2)) + x[:, :1].squeeze(1)[:, None]


def test_a_squeeze_of_nothing_is_left_out(tmp_path):
    path = tmp_path / "model.onnx"
    assert exporters.to_onnx(Squeezes().eval(), path, example_inputs=torch.randn(2, 3, 4)).passed


class Vectorised(nn.Module):
    """Makes its mask with vmap, and hands out its input's name for something else."""

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        def kept(row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
            return (row >= column) & (row - column < 3)

        places = torch.arange(x.shape[1])
        over = torch.vmap(torch.vmap(kept, (None, 0)), (0, None))(places, places)
        return {"y": over.float() @ x, "mask": mask.logical_not()}


def test_vmap_and_outputs_named_like_inputs(tmp_path):
    given = {"x": torch.randn(2, 6, 4), "mask": torch.ones(2, 6, dtype=torch.bool)}
    model, path = Vectorised().eval(), tmp_path / "model.onnx"
    assert exporters.to_onnx(model, path, example_inputs=given, dynamic=False).passed
    session = exporters.open_session(path)
    assert [output.name for output in session.get_outputs()] == ["y", "output_mask"]


def test_texts_and_numbers_are_left_out_and_told() -> None:
    class Telling(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, object]:
            return {"y": x + 1, "name": "telling", "size": 3}

    model = Telling().eval()
    captured = capture(model, collect(model, torch.randn(2, 3)))
    assert captured.outputs == ("y",)
    assert captured.notes == ("name is no tensor: left out", "size is no tensor: left out")
