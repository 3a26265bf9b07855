"""Models in which whole numbers tell how the data is laid out: grids of patches, places of image tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from packaging.version import Version
from torch import Tensor, nn
from torch.nn import functional as F

import exporters
from surgery.errors import SurgeryError

WIDTH, HEADS, IMAGE, LENGTH = 8, 2, 9, 7
GRID = torch.tensor([[2, 3], [2, 2]])


class Tower(nn.Module):
    """Attends image by image, as the vision towers of Qwen-VL and its like do."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.rows = nn.Embedding(4, WIDTH)

    def forward(self, patches: Tensor, grid: Tensor) -> Tensor:
        rows = torch.cat([torch.arange(h).repeat_interleave(w) for h, w in grid.tolist()])
        areas = grid.prod(1)
        ends = torch.repeat_interleave(areas.cumsum(0), areas)
        qkv = self.qkv(patches + self.rows(rows) + ends[:, None] / 100)
        parts = [
            F.scaled_dot_product_attention(*self.heads(part)).transpose(1, 2).flatten(2)
            for part in qkv.split(areas.tolist())
        ]
        return self.out(torch.cat(parts, 1))[0]

    def heads(self, part: Tensor) -> list[Tensor]:
        return list(part.unflatten(-1, (3, HEADS, -1)).permute(1, 2, 0, 3)[:, None].unbind())


class Prompt(nn.Module):
    """Puts what the tower sees in the place of image tokens, and lets tokens attend tokens."""

    def __init__(self, asks: str = "") -> None:
        super().__init__()
        self.tower, self.ids, self.asks = Tower(), nn.Embedding(20, WIDTH), asks
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(
        self, input_ids: Tensor, patches: Tensor, grid: Tensor, attention_mask: Tensor
    ) -> Tensor:
        asked = {"mask": attention_mask, "ids": input_ids}.get(self.asks)
        extra = sum(asked.flatten().tolist()) / 100 if asked is not None else 0
        places = (input_ids == IMAGE)[..., None].expand(-1, -1, WIDTH)
        seen = self.tower(patches, grid)
        assert torch.compiler.is_exporting() or places[..., 0].sum() == len(seen)
        x = self.ids(input_ids).masked_scatter(places, seen) + extra
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4).unbind()
        kept = attention_mask.bool()[:, None, None, :]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=kept).transpose(1, 2).flatten(2)


def prompt() -> dict[str, Tensor]:
    """Three tokens of the first and seven of the second row are images' patches, as many as these have."""
    ids = torch.randint(0, IMAGE, (2, LENGTH))
    ids[0, 1:4] = ids[1, :] = IMAGE
    mask = torch.ones_like(ids)
    mask[0, -2:] = 0
    return {
        "input_ids": ids,
        "patches": torch.randn(10, WIDTH),
        "grid": GRID,
        "attention_mask": mask,
    }


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def run(path: Path, feeds: dict[str, Tensor]) -> np.ndarray[Any, Any]:
    return session(path).run(None, {name: value.numpy() for name, value in feeds.items()})[0]


def takes(path: Path) -> set[str]:
    return {given.name for given in session(path).get_inputs()}


def test_a_tower_takes_patches_of_one_grid(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path, model = tmp_path / "tower.onnx", Tower().eval()
    report = exporters.to_onnx(
        model, path, example_inputs={"patches": torch.randn(10, WIDTH), "grid": GRID}
    )
    assert report.fused == len(report.sites) == 2
    assert any("no batch in common, 10 in patches, 2 in grid" in note for note in report.notes)
    assert "grid is fixed at [[2, 3], [2, 2]]: the graph follows from it" in report.notes
    assert takes(path) == {"patches"}
    others = torch.randn(10, WIDTH)
    expected = model(others, GRID).detach().numpy()
    np.testing.assert_allclose(run(path, {"patches": others}), expected, atol=1e-5)
    assert "forward" not in vars(model)


def test_of_a_prompt_tokens_and_padding_stay_open(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path, model, given = tmp_path / "model.onnx", Prompt().eval(), prompt()
    report = exporters.to_onnx(model, path, example_inputs=given)
    assert report.fused == len(report.sites) == 3
    assert takes(path) == {"input_ids", "patches", "attention_mask"}
    ids = given["input_ids"]
    others = given | {
        "input_ids": ids.where(ids == IMAGE, torch.randint(0, IMAGE, ids.shape)).flip(0),
        "patches": torch.randn(10, WIDTH),
        "attention_mask": given["attention_mask"].flip(1),
    }
    fed = {name: value for name, value in others.items() if name != "grid"}
    expected = model(**others).detach().numpy()
    np.testing.assert_allclose(run(path, fed), expected, atol=1e-5)


def test_a_mask_is_fixed_only_where_the_graph_follows_from_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path, given = tmp_path / "model.onnx", prompt()
    report = exporters.to_onnx(Prompt("mask").eval(), path, example_inputs=given)
    assert "attention_mask is fixed at [[1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1]]: " in "".join(
        report.notes
    )
    assert takes(path) == {"input_ids", "patches"}


@pytest.mark.slow
def test_a_file_for_one_text_alone_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(SurgeryError):
        exporters.to_onnx(Prompt("ids").eval(), tmp_path / "model.onnx", example_inputs=prompt())
    assert not (tmp_path / "model.onnx").exists()


class Placed(nn.Module):
    """A batch of images, each of which takes three tokens of its row."""

    def __init__(self, longest: int = 99) -> None:
        super().__init__()
        self.ids, self.out, self.longest = nn.Embedding(20, WIDTH), nn.Linear(WIDTH, 3), longest

    def forward(self, input_ids: Tensor, pixels: Tensor) -> Tensor:
        places = input_ids == IMAGE
        if not torch.compiler.is_exporting():
            assert places.sum() == 3 * len(pixels), "image features and image tokens do not match"
            assert input_ids.shape[1] <= self.longest, "too long"
        x = self.ids(input_ids).masked_scatter(places[..., None].expand(-1, -1, WIDTH), pixels)
        return self.out(x)


def images() -> dict[str, Tensor]:
    ids = torch.randint(0, IMAGE, (2, LENGTH))
    ids[:, 2:5] = IMAGE
    return {"input_ids": ids, "pixels": torch.randn(2, 3, WIDTH)}


def test_tokens_that_belong_to_images_are_kept_at_other_sizes(tmp_path: Path) -> None:
    path, model = tmp_path / "model.onnx", Placed().eval()
    report = exporters.to_onnx(model, path, example_inputs=images())
    sizes = {tuple(row.sizes.values()) for row in report.files[0].verification.parity}
    assert sizes == {(batch, length) for batch in (1, 2, 5) for length in (LENGTH, LENGTH + 3)}


def test_one_example_is_enough(tmp_path: Path) -> None:
    one = {name: value[:1] for name, value in images().items()}
    report = exporters.to_onnx(Placed().eval(), tmp_path / "model.onnx", example_inputs=one)
    assert report.passed


def test_a_model_that_runs_at_no_other_size_is_refused_with_its_own_reason(tmp_path: Path) -> None:
    with pytest.raises(exporters.ExportError, match="too long") as caught:
        exporters.to_onnx(Placed(LENGTH).eval(), tmp_path / "model.onnx", example_inputs=images())
    assert "does not run at other sizes" in str(caught.value)
    assert "dynamic=False" in str(caught.value)
    exporters.to_onnx(
        Placed(LENGTH).eval(), tmp_path / "model.onnx", example_inputs=images(), dynamic=False
    )


class Sized(nn.Module):
    """Returns numbers beside its tensor."""

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"y": x.sin(), "sizes": (x.shape[1], x.shape[0]), "scale": 0.5}


def test_outputs_that_are_numbers_are_left_out_and_told(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    report = exporters.to_onnx(Sized().eval(), path, example_inputs=torch.randn(2, 4))
    assert [output.name for output in session(path).get_outputs()] == ["y"]
    told = {note.partition(" is no tensor")[0] for note in report.notes}
    assert told == {"sizes.0", "sizes.1", "scale"}


class Returning(nn.Module):
    """Returns its mask beside what it computes."""

    def forward(self, x: Tensor, mask: Tensor) -> dict[str, Tensor]:
        return {"y": x * mask[..., None], "mask": mask}


def test_an_input_that_is_returned_keeps_its_name(tmp_path: Path) -> None:
    path, mask = tmp_path / "model.onnx", torch.tensor([[1.0, 0, 1], [0, 1, 1]])
    given = {"x": torch.randn(2, 3, WIDTH), "mask": mask}
    exporters.to_onnx(Returning().eval(), path, example_inputs=given)
    assert [value.name for value in session(path).get_inputs()] == ["x", "mask"]
    assert [value.name for value in session(path).get_outputs()] == ["y", "output_mask"]


class Chosen(nn.Module):
    """Attends all tokens, then those that a mask keeps: how many, no graph can know."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor, kept: Tensor) -> Tensor:
        x = x + self.attend(self.first(x))
        return self.attend(self.second(x[kept])[None])[0]

    @staticmethod
    def attend(qkv: Tensor) -> Tensor:
        q, k, v = qkv.unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4).unbind()
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


@pytest.mark.skipif(
    Version(torch.__version__) < Version("2.15"),
    reason="torch 2.11 does not capture attention over a size that follows from values",
)
def test_attention_before_an_unknown_size_is_fused_and_that_behind_it_told(tmp_path: Path) -> None:
    path, model = tmp_path / "model.onnx", Chosen().eval()
    x, kept = torch.randn(2, LENGTH, WIDTH), torch.rand(2, LENGTH) > 0.5
    given = {"x": x, "kept": kept}
    report = exporters.to_onnx(
        model, path, example_inputs=given, dynamic={"x": {0: "batch"}, "kept": {0: "batch"}}
    )
    assert report.unfused == {"its sizes follow from the values of tensors": 1}
    assert report.fused == 1
    few = {"x": x, "kept": torch.eye(2, LENGTH).bool()}
    np.testing.assert_allclose(run(path, few), model(**few).detach().numpy(), atol=1e-5)


class Written(nn.Module):
    """Writes into a table that follows from known numbers."""

    def forward(self, x: Tensor, grid: Tensor) -> Tensor:
        areas = grid.prod(1).tolist()
        table = torch.arange(sum(areas))
        table[:1] = (x[0, :1] > 0).long()
        return x + table[:, None]


def test_what_is_written_to_later_is_no_constant(tmp_path: Path) -> None:
    path, model = tmp_path / "model.onnx", Written().eval()
    x = torch.ones(10, WIDTH)
    exporters.to_onnx(model, path, example_inputs={"x": x, "grid": GRID})
    for value in (x, -x):
        found = run(path, {"x": value})
        np.testing.assert_allclose(found, model(value, GRID).numpy(), atol=1e-6)


class Numbered(nn.Module):
    """Counts the patches, of which there are ten, and the tokens, of which there are any number."""

    def forward(self, input_ids: Tensor, grid: Tensor) -> Tensor:
        patches = torch.arange(sum(grid.prod(1).tolist()))
        return input_ids * patches[-1] + torch.arange(input_ids.shape[1])


def test_what_follows_from_a_dynamic_size_is_no_constant(tmp_path: Path) -> None:
    path, model = tmp_path / "model.onnx", Numbered().eval()
    given = {"input_ids": torch.randint(0, IMAGE, (2, LENGTH)), "grid": GRID}
    axes = {"input_ids": {0: "batch", 1: "sequence"}}
    exporters.to_onnx(model, path, example_inputs=given, dynamic=axes)
    longer = torch.randint(0, IMAGE, (3, LENGTH + 4))
    assert (run(path, {"input_ids": longer}) == model(longer, GRID).numpy()).all()


class Unpadded(nn.Module):
    """Asks whether there is padding at all, as FSMT does."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        return y if attention_mask.bool().all() else y * attention_mask[..., None]


def test_a_graph_for_some_shapes_alone_is_offered(tmp_path: Path) -> None:
    path, model, mask = tmp_path / "m.onnx", Unpadded().eval(), torch.tensor([[1, 1, 0], [1, 1, 1]])
    given = {"x": torch.randn(2, 3, WIDTH), "attention_mask": mask}
    with pytest.raises(SurgeryError, match=r"dynamic=False: .* these shapes alone") as caught:
        exporters.to_onnx(model, path, example_inputs=given)
    assert caught.value.where is not None
    assert caught.value.where.startswith(f"{__name__}, line ")
    report = exporters.to_onnx(model, path, example_inputs=given, dynamic=False)
    assert any(note.startswith("attention_mask is fixed at") for note in report.notes)
    assert takes(path) == {"x"}


class Conditioned(nn.Module):
    """Takes what it is conditioned on by ``**kwargs``, as Voxtral's text model does."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, **kwargs: Tensor | str) -> Tensor:
        assert kwargs["how"] == "added" and isinstance(kwargs["t_cond"], Tensor)
        y: Tensor = self.linear(x) + kwargs["t_cond"]
        return y


def test_an_input_that_only_kwargs_take_is_one(tmp_path: Path) -> None:
    path, model = tmp_path / "model.onnx", Conditioned().eval()
    given = {"x": torch.randn(2, 3, WIDTH), "t_cond": torch.randn(2, 1, WIDTH), "how": "added"}
    exporters.to_onnx(model, path, example_inputs=given)
    assert takes(path) == {"x", "t_cond"}
    more = {"x": torch.randn(5, 3, WIDTH), "t_cond": torch.randn(5, 1, WIDTH)}
    expected = model(**more, how="added").detach().numpy()
    np.testing.assert_allclose(run(path, more), expected, atol=1e-6)
    assert "forward" not in vars(model)


class Features(nn.Module):
    """Takes features of two kinds, of the second none: forecasters are configured so."""

    def forward(self, x: Tensor, more: Tensor) -> Tensor:
        return torch.cat([x, more], -1).cumsum(-1)


def test_there_may_be_no_features_of_a_kind(tmp_path: Path) -> None:
    path, model = tmp_path / "model.onnx", Features().eval()
    given = {"x": torch.randn(2, 3, WIDTH), "more": torch.randn(2, 3, 0)}
    exporters.to_onnx(model, path, example_inputs=given, target="portable")
    more = {"x": torch.randn(4, 3, WIDTH), "more": torch.randn(4, 3, 0)}
    np.testing.assert_allclose(run(path, more), model(**more).numpy(), atol=1e-6)
