"""Padding stays hidden however large the scores, and whatever a query sees."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import exporters
from surgery.anatomy.capture import without_fast_path

LOWEST = torch.finfo(torch.float32).min
AXES = {0: "batch", 1: "sequence"}


class Packed(nn.Module):
    """Query, key and value of two heads of size 4 out of one product."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv = nn.Linear(8, 24)

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind()


class Padded(Packed):
    """Attention under a padding mask, ``Attention`` in the file; with norms in between ``MultiHeadAttention``."""

    def __init__(self, mask: str, causal: bool = False, normed: bool = False) -> None:
        super().__init__()
        self.mask, self.causal, self.normed = mask, causal, normed

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        q, k, v = self.split(x)
        if self.normed:
            q, k = (F.layer_norm(each, (4,)) * 300 for each in (q, k))
        seen = attention_mask[:, None, None, :].bool()
        if self.causal:
            seen = seen & torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        if self.mask == "bool":
            attended = F.scaled_dot_product_attention(q, k, v, seen)
        else:
            added = torch.where(seen, 0.0, float(self.mask))
            attended = F.scaled_dot_product_attention(q, k, v, added)
        return attended.transpose(1, 2).flatten(2)


def given(padding: str) -> dict[str, Tensor]:
    mask = torch.ones(3, 7, dtype=torch.int64)
    if padding == "right":
        mask[1, 4:], mask[2, 1:] = 0, 0
    else:
        mask[1, :3], mask[2] = 0, 0
    return {"x": torch.randn(3, 7, 8), "attention_mask": mask}


def compare(model: nn.Module, path, inputs: dict[str, Tensor]) -> None:
    """Fused file and portable one against the model."""
    with torch.no_grad():
        expected = model(**inputs)
    for file in (path, path.with_suffix(".portable.onnx")):
        feeds = {name: value.numpy() for name, value in inputs.items()}
        (found,) = exporters.open_session(file).run(None, feeds)
        scale = float(expected.abs().max())
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-5 * scale)


def export(model: nn.Module, path) -> exporters.ExportReport:
    inputs = given("right")
    axes = dict.fromkeys(inputs, AXES)
    return exporters.to_onnx(model.eval(), path, example_inputs=inputs, dynamic=axes)


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_large_scores_do_not_show_what_is_hidden(normed, causal, tmp_path):
    model, path = Padded(LOWEST, causal, normed), tmp_path / "m.onnx"
    assert export(model, path).fused == 1
    for padding in ("right", "left"):
        inputs = given(padding)
        compare(model, path, {**inputs, "x": inputs["x"] * 300})


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", ["bool", "-inf", LOWEST])
def test_queries_that_see_nothing_are_what_they_are_in_the_model(mask, causal, normed, tmp_path):
    """0 under booleans and infinities, an average under a finite number."""
    model, path = Padded(mask, causal, normed), tmp_path / "m.onnx"
    assert export(model, path).fused == 1
    compare(model, path, given("left"))


class Given(Packed):
    """The mask itself is an input, in any shape that broadcasts."""

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        q, k, v = self.split(x)
        return F.scaled_dot_product_attention(q, k, v, seen).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("shape", [(7, 7), (2, 7, 7), (3, 2, 7, 7), (3, 1, 1, 7)])
def test_a_mask_of_any_shape_may_leave_a_query_with_nothing(shape, tmp_path):
    seen = torch.ones(shape, dtype=torch.bool)
    inputs = {"x": torch.randn(3, 7, 8), "seen": seen}
    path = tmp_path / "m.onnx"
    report = exporters.to_onnx(Given().eval(), path, example_inputs=inputs, dynamic=False)
    assert report.fused == 1
    seen.view(-1, 7)[::3] = False
    compare(Given().eval(), path, inputs)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_decoder_without_a_cache(attention, build, tmp_path):
    """Eager, a query that sees nothing attends to all keys alike, later ones too."""
    model, path = build("llama"), tmp_path / "m.onnx"
    model.set_attn_implementation(attention)
    assert exporters.to_onnx(model, path).fused == 2
    ids, mask = torch.randint(60, (3, 7)), given("left")["attention_mask"]
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).logits
    for file in (path, path.with_suffix(".portable.onnx")):
        feeds = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
        (found,) = exporters.open_session(file).run(["logits"], feeds)
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)


class Counted(Packed):
    """A mask of whole numbers that is added to the scores, as BERT's first code had it."""

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        q, k, v = self.split(x)
        scores = q @ k.mT / 2 + (1 - attention_mask[:, None, None, :]) * -10000
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def test_a_mask_of_whole_numbers_may_be_added(tmp_path):
    model, path = Counted(), tmp_path / "m.onnx"
    assert export(model, path).fused == 1
    compare(model, path, given("right"))


class Encoder(nn.Module):
    """torch's own, whose mask is one a head, of 0 and -inf."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2)

    def forward(self, x: Tensor, padding_mask: Tensor) -> Tensor:
        return self.layers(x, src_key_padding_mask=padding_mask)


@pytest.mark.skipif(
    torch.__version__ < (2, 15), reason="torch 2.11 does not decompose its own encoder layer"
)
def test_torchs_own_encoder_with_padding(tmp_path):
    hidden = torch.zeros(3, 7, dtype=torch.bool)
    hidden[1, 4:], hidden[2, 1:] = True, True
    model, path, inputs = Encoder().eval(), tmp_path / "m.onnx", {"x": torch.randn(3, 7, 32)}
    inputs["padding_mask"] = hidden
    report = exporters.to_onnx(
        model, path, example_inputs=inputs, dynamic=dict.fromkeys(inputs, AXES)
    )
    assert report.fused == len(report.sites) == 2
    assert any("fast path of TransformerEncoder" in note for note in report.notes)
    with without_fast_path():
        for emptied in (hidden, torch.ones_like(hidden)):
            compare(model, path, {**inputs, "padding_mask": emptied})


class Viewed(Padded):
    """Joins its heads in a ``view``, as torch's own kernels lay them in memory."""

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        q, k, v = self.split(x)
        added = torch.where(attention_mask[:, None, None, :].bool(), 0.0, float("-inf"))
        added = added.expand(-1, 2, x.shape[1], -1)
        attended = F.scaled_dot_product_attention(q, k, v, added).transpose(1, 2)
        return attended.view(*x.shape[:2], 8)


def test_heads_may_be_joined_by_a_view(tmp_path):
    model, path = Viewed("-inf"), tmp_path / "m.onnx"
    assert export(model, path).fused == 1
    for padding in ("right", "left"):
        compare(model, path, given(padding))
