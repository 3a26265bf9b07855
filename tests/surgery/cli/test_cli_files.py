"""info and diff tell what files hold."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from surgery.adapter_file import read_file
from surgery.cli.adapter_files import update

from .conftest import SETTINGS, TIMM, Run, base, trained

Adapter = tuple[Path, nn.Module]


def test_info_of_an_adapter(run: Run, adapter: Adapter) -> None:
    told = run("info", adapter[0], "--json")
    assert told["adapters"] == [{"kind": "symlora", "rank": 2, "count": 4}]
    assert told["policy"] == "vit-attn-qv" and told["also_saved"] == ["head.bias", "head.weight"]
    assert len(told["base"]) == 64 and told["base_dtypes"] == ["float32"]
    assert "4 x symlora, rank 2" in run("info", adapter[0]).stdout


def test_info_of_onnx_files(run: Run, onnx_file: Path) -> None:
    fused = run("info", onnx_file, "--json")
    portable = run("info", onnx_file.with_suffix(".portable.onnx"), "--json")
    assert (fused["target"], portable["target"]) == ("cpu", "portable")
    assert fused["operators"]["com.microsoft::Attention"] == 2
    assert fused["inputs"][0]["shape"][1:] == [3, 32, 32]
    assert fused["inputs"][0]["dtype"] == "float"
    assert "com.microsoft::Attention" in run("info", onnx_file).stdout


def test_diff_of_an_adapter_with_itself_is_nothing(run: Run, adapter: Adapter) -> None:
    plain = run("diff", adapter[0], adapter[0], "--json")
    assert len(plain["projections"]) == 4 and plain["same_base"]
    assert all(row["relative"] == 0 for row in plain["projections"] + plain["also_saved"])
    assert all(row["cosine"] == pytest.approx(1) for row in plain["projections"])


def test_diff_measures_the_updates(run: Run, adapter: Adapter, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    trained(other, adapter="lora", depth="last 1", seed=2)
    plain = run("diff", adapter[0], other, "--json")
    assert len(plain["projections"]) == 2 and len(plain["only_in_first"]) == 2
    first, second = read_file(adapter[0]), read_file(other)
    operation = second.plan.operations[0]
    mine = next(o for o in first.plan.operations if o.name == operation.name)
    a, b = update(first, mine), update(second, operation)
    row = plain["projections"][0]
    assert row["relative"] == pytest.approx(float((a - b).norm() / a.norm()))
    assert row["norms"] == pytest.approx([float(a.norm()), float(b.norm())])
    assert "only in the first" in run("diff", adapter[0], other).stdout


@pytest.mark.parametrize("kind", ["lora", "srlora", "symlora"])
def test_the_update_is_what_folding_adds(kind: str, tmp_path: Path) -> None:
    import surgery

    model = trained(tmp_path / "x.safetensors", adapter=kind)
    file = read_file(tmp_path / "x.safetensors")
    surgery.fold(model)
    operation = file.plan.operations[0]
    rows = slice(*operation.projection.rows[0])
    name = operation.projection.weight_name
    gained = (model.get_parameter(name) - base().get_parameter(name))[rows].detach().double()
    torch.testing.assert_close(update(file, operation), gained, rtol=0, atol=1e-5)


def test_a_polar_update_cannot_be_told_without_its_base(run: Run, tmp_path: Path) -> None:
    trained(tmp_path / "p.safetensors", adapter="polar")
    assert "hangs on the base" in run("diff", "p.safetensors", "p.safetensors", code=1).stderr


@pytest.mark.parametrize("name", ["missing.safetensors", "missing.onnx"])
@pytest.mark.parametrize("broken", [False, True], ids=["missing", "broken"])
def test_missing_and_broken_files(run: Run, tmp_path: Path, name: str, broken: bool) -> None:
    if broken:
        (tmp_path / name).write_bytes(b"\x07garbage, and more of it" * 9)
    for command in (("info", name, "--json"), ("bench", TIMM, *SETTINGS, "--onnx", name)):
        result = run(*command, code=1)
        text = result.stderr
        assert text.startswith("error: ") and name in text and "hint: " in text
        assert "Traceback" not in text and result.stdout == ""


def test_a_truncated_adapter_is_refused(run: Run, adapter: Adapter, tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(adapter[0].read_bytes()[:-50])
    for words in (("info", "cut.safetensors"), ("diff", adapter[0], "cut.safetensors")):
        assert "cut.safetensors" in run(*words, code=1).stderr
