"""Naming inputs, and making more of the same kind at other sizes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import exporters
from exporters.capture import capture
from exporters.errors import ExportError
from exporters.inputs import Inputs, collect


class Text(nn.Module):
    def forward(self, input_ids, attention_mask=None, flag=False, **extra):
        return input_ids * (attention_mask if flag else 1) + extra.get("shift", 0)


IDS = torch.tensor([[5, 9, 7], [8, 5, 6]])


def test_positional_named_and_extra_inputs_get_the_names_of_forward():
    inputs = collect(Text(), {"input_ids": IDS, "shift": IDS, "flag": True})
    assert set(inputs.tensors) == {"input_ids", "shift"}
    assert inputs.constants == {"flag": True}
    assert set(collect(Text(), (IDS, IDS)).tensors) == {"input_ids", "attention_mask"}
    assert set(collect(Text(), IDS).tensors) == {"input_ids"}


def test_whole_numbers_have_a_length_and_images_have_none():
    class Both(nn.Module):
        def forward(self, input_ids, decoder_input_ids, pixel_values): ...

    given = (IDS, IDS, torch.zeros(2, 3, 8, 8))
    assert collect(Both(), given).axes == {
        "input_ids": {0: "batch", 1: "sequence"},
        "decoder_input_ids": {0: "batch", 1: "decoder_sequence"},
        "pixel_values": {0: "batch"},
    }


def test_two_lengths_under_one_name_are_refused():
    with pytest.raises(ExportError, match="sequence is 3 in input_ids and 2 here"):
        collect(Text(), (IDS, IDS[:, :2]))


@given(batch=st.integers(1, 6), length=st.integers(1, 9), seed=st.integers(0, 9))
def test_other_sizes_keep_the_vocabulary_and_the_kind(batch, length, seed):
    inputs = collect(Text(), (IDS, torch.ones_like(IDS)))
    made = inputs.resized({"batch": batch, "sequence": length}, seed)
    ids, mask = made.tensors["input_ids"], made.tensors["attention_mask"]
    assert ids.shape == mask.shape == (batch, length)
    assert set(ids.flatten().tolist()) <= set(IDS.flatten().tolist())
    assert ids.dtype is mask.dtype is torch.int64
    assert made.sizes == {"batch": batch, "sequence": length}


@given(batch=st.integers(2, 6), length=st.integers(3, 9))
def test_masks_are_ragged_and_never_empty(batch, length):
    inputs = collect(Text(), (IDS, torch.ones_like(IDS)))
    mask = inputs.resized({"batch": batch, "sequence": length}).tensors["attention_mask"]
    kept = mask.sum(1)
    assert kept[0] == length
    assert kept.min() >= 1
    assert kept[1] < length
    assert (mask.diff(dim=1) <= 0).all()


@pytest.mark.parametrize(
    ("mask", "token"),
    [
        (torch.tensor([[1, 1, 0], [1, 0, 0]]), True),  # whole numbers: 1 is a token
        (torch.zeros(2, 3, dtype=torch.int64), False),
        (torch.tensor([[True, True, True], [True, False, False]]), True),
        (torch.tensor([[False, False, False], [False, True, True]]), False),
        (torch.tensor([[False, False, True], [False, True, True]]), True),
        (torch.tensor([[False, False, True], [False, False, True]]), False),
    ],
)
def test_a_padding_mask_keeps_the_sense_of_the_example(mask, token):
    made = collect(Text(), (IDS, mask)).resized({"batch": 3, "sequence": 6})
    found = made.tensors["attention_mask"]
    assert found.dtype is mask.dtype
    assert (found.bool() == token).sum(1).tolist() == [6, 4, 2]


AXES = {"x": {0: "batch", 1: "sequence"}, "attn_mask": {0: "sequence", 1: "sequence"}}


@pytest.mark.parametrize("axes", [AXES, False])
@pytest.mark.parametrize(
    "mask", [torch.ones(3, 3).triu(1).bool(), torch.full((3, 3), -torch.inf).triu(1)]
)
def test_a_mask_of_positions_is_kept_as_it_is(axes, mask):
    class Masked(nn.Module):
        def forward(self, x, attn_mask): ...

    inputs = collect(Masked(), (torch.randn(2, 3, 4), mask), axes)
    assert torch.equal(inputs.resized({}).tensors["attn_mask"], mask)
    longer = inputs.resized({"sequence": 5}).tensors["attn_mask"]
    assert torch.equal(longer[:3, :3], mask)
    assert longer.shape == ((3, 3) if axes is False else (5, 5))


def test_without_axes_a_padding_mask_has_as_many_rows_as_the_data():
    inputs = collect(Text(), (IDS, torch.ones_like(IDS)), dynamic=False)
    assert inputs.resized({}).tensors["attention_mask"].sum(1).tolist() == [3, 2]


def test_the_same_seed_draws_the_same():
    inputs = Inputs({"x": torch.randn(2, 4)}, {}, {"x": {0: "batch"}})
    first, second, other = (inputs.resized({"batch": 3}, seed) for seed in (1, 1, 2))
    assert torch.equal(first.tensors["x"], second.tensors["x"])
    assert not torch.equal(first.tensors["x"], other.tensors["x"])


@pytest.mark.parametrize(("number", "most"), [(0.0, 1.0), (1.0, 2.0), (-2.5, 0.0), (1e9, 2e9)])
def test_numbers_that_are_one_number_everywhere_are_drawn_from_there_on(number, most):
    inputs = collect(nn.Linear(4, 3), torch.full((2, 4), number))
    drawn = inputs.resized({"batch": 50}).tensors["input"]
    assert number <= drawn.min() < drawn.max() <= most
    kept = inputs.resized({}, keep=lambda name, value: True).tensors["input"]
    assert torch.equal(kept, inputs.tensors["input"])


@pytest.mark.parametrize("value", [torch.full((2, 4), -torch.inf), torch.zeros(2, 4).long()])
def test_infinities_and_whole_numbers_stay_one(value):
    drawn = collect(nn.Linear(4, 3), value).resized({"batch": 5}).tensors["input"]
    assert torch.equal(drawn, value[:1].expand(5, 4))


def test_segments_that_are_left_out_are_told(build):
    model = build("bert")
    assert any("token_type_ids is no input" in note for note in collect(model).notes)
    ids = torch.zeros(1, 4, dtype=torch.int64)
    given = {"input_ids": ids, "attention_mask": ids + 1, "token_type_ids": ids}
    assert collect(model, given).notes == ()
    assert collect(build("vit")).notes == ()


class Table(nn.Module):
    def forward(self, input_ids):
        return input_ids + torch.arange(3)


class Fixes(nn.Module):
    """One input's length becomes a number, the other's stays open."""

    def forward(self, input_ids, other_ids):
        return input_ids + torch.arange(3), other_ids * 2


def test_an_axis_that_the_model_fixes_is_noted_and_no_longer_dynamic():
    captured = capture(Table().eval(), collect(Table(), IDS))
    assert captured.notes == ("sequence is fixed at 3: the model allows no other",)
    assert captured.inputs.axes == {"input_ids": {0: "batch"}}


@pytest.mark.parametrize(("model", "given"), [(Table(), (IDS,)), (Fixes(), (IDS, IDS))])
def test_a_file_takes_no_other_size_than_the_fixed_one(model, given, tmp_path):
    report = exporters.to_onnx(
        model.eval(), tmp_path / "m.onnx", target="portable", example_inputs=given
    )
    assert report.notes[0].startswith("sequence is fixed at 3: the model allows no other")
    assert ("so in all inputs that have a sequence" in report.notes[0]) == (len(given) > 1)
    session = exporters.open_session(tmp_path / "m.onnx")
    assert [i.shape for i in session.get_inputs()] == [["batch", 3]] * len(given)
    assert [o.shape for o in session.get_outputs()] == [["batch", 3]] * len(given)


def test_a_size_of_1_that_is_called_open_is_open(tmp_path):
    model = nn.Linear(4, 3).eval()
    x = torch.randn(1, 4)
    axes = {"input": {0: "N"}}
    report = exporters.to_onnx(
        model, tmp_path / "m.onnx", target="portable", example_inputs=x, dynamic=axes
    )
    session = exporters.open_session(tmp_path / "m.onnx")
    assert session.get_inputs()[0].shape == ["N", 4]
    assert {row.sizes["N"] for row in report.files[0].verification.parity} == {1, 2, 4}


class Unrolled(nn.Module):
    """As many steps as the example has."""

    def forward(self, x):
        return torch.stack([number * step for number, step in enumerate(x.unbind(1), 1)], 1)


class Broadcast(nn.Module):
    """One row of ``y``, or as many as there are of ``x``."""

    def forward(self, x, y):
        return x + y


@pytest.mark.parametrize(
    ("model", "given", "axes", "told"),
    [
        (Unrolled(), (torch.randn(3, 1),), {"x": {1: "steps"}}, "steps is fixed at 1"),
        (
            Broadcast(),
            (torch.randn(2, 4), torch.randn(1, 4)),
            {"x": {0: "batch"}, "y": {0: "rows"}},
            "rows is fixed at 1",
        ),
    ],
)
def test_a_size_of_1_that_cannot_be_open_is_fixed_and_told(model, given, axes, told, tmp_path):
    report = exporters.to_onnx(
        model.eval(), tmp_path / "m.onnx", target="portable", example_inputs=given, dynamic=axes
    )
    assert report.notes[0].startswith(told)


def test_two_names_for_one_size_are_refused():
    given, axes = (torch.randn(2, 4), torch.randn(2, 4)), {"x": {0: "batch"}, "y": {0: "rows"}}
    with pytest.raises(ExportError, match="two names for one size"):
        capture(Broadcast().eval(), collect(Broadcast(), given, axes))


def test_limits_come_from_the_models_own_guards():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.randn(12, 2))

        def forward(self, input_ids):
            return input_ids[..., None] + self.table[None, : input_ids.shape[1]]

    captured = capture(Positions().eval(), collect(Positions(), IDS))
    assert captured.limits["sequence"][1] == 12
    assert set(captured.symbols.values()) == {"batch", "sequence"}


def test_outputs_are_named_by_their_place():
    class Nested(nn.Module):
        def forward(self, x):
            return {"logits": x * 1, "states": (x * 2, x * 3)}

    class Several(nn.Module):
        def forward(self, x):
            return x * 1, x * 2

    class One(nn.Module):
        def forward(self, x):
            return x * 1

    x = torch.randn(2, 3)
    names = [capture(m.eval(), collect(m, x)).outputs for m in (Nested(), Several(), One())]
    assert names == [("logits", "states.0", "states.1"), ("output_0", "output_1"), ("output",)]


@pytest.mark.skipif(
    torch.__version__ < (2, 15), reason="torch 2.11 does not decompose its own encoder layer"
)
@pytest.mark.parametrize("dynamic", [True, False])
def test_torchs_own_padding_mask_goes_all_the_way(dynamic, tmp_path):
    class Encoder(nn.TransformerEncoderLayer):
        def forward(self, x, padding_mask):
            return super().forward(x, src_key_padding_mask=padding_mask)

    model = Encoder(16, 2, 16, batch_first=True, norm_first=True).eval()
    hidden = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    report = exporters.to_onnx(
        model, tmp_path / "m.onnx", example_inputs=(torch.randn(2, 5, 16), hidden), dynamic=dynamic
    )
    assert (report.fused, report.passed) == (1, True)
