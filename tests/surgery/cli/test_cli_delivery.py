"""fold and export write what they promise, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, BertConfig

import surgery

from .conftest import SETTINGS, TIMM, Run, base

Adapter = tuple[Path, nn.Module]


def test_fold_of_a_timm_model_computes_what_the_adapted_one_does(
    run: Run, adapter: Adapter, tmp_path: Path
) -> None:
    path, adapted = adapter
    report = run("fold", TIMM, path, "--out", "folded", *SETTINGS, "--json")
    assert report["function_drift"] < 1e-5 and report["out"] == "folded"
    assert [file.name for file in (tmp_path / "folded").iterdir()] == ["model.safetensors"]
    model = base()
    x = torch.randn(2, 3, 32, 32)
    before = model(x)
    model.load_state_dict(safetensors.torch.load_file(tmp_path / "folded/model.safetensors"))
    torch.testing.assert_close(model(x), adapted(x), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model(x), before, atol=1e-3)


def test_fold_of_a_transformers_model_is_loaded_by_from_pretrained(
    run: Run, bert: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(BertConfig.from_pretrained(bert)).eval()
    surgery.apply(model, "text-attn-qv", rank=2, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    surgery.save(model, tmp_path / "text.safetensors")
    result = run("fold", f"hf:{bert}", "text.safetensors", "--out", "folded")
    assert "random" in result.stderr
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "folded").eval()
    tokens = torch.arange(12).reshape(2, 6)
    torch.testing.assert_close(again(tokens).logits, model(tokens).logits, rtol=1e-4, atol=1e-5)
    plain = run("inspect", "hf:./folded", "--json")
    assert len(plain["sites"]) == 2
    assert "random" not in run("fold", "hf:./folded", "text.safetensors", "-o", "x", code=1).stderr


def test_a_folder_with_files_is_left_alone_unless_asked(
    run: Run, adapter: Adapter, tmp_path: Path
) -> None:
    kept = tmp_path / "mine" / "model.safetensors"
    kept.parent.mkdir()
    kept.write_text("mine")
    words = ("fold", TIMM, adapter[0], "--out", "mine", *SETTINGS)
    assert "--overwrite" in run(*words, code=1).stderr and kept.read_text() == "mine"
    run(*words, "--overwrite")
    assert "head.weight" in safetensors.torch.load_file(kept)


@pytest.mark.parametrize("words", [(), ("--set", "num_classes=7"), ("--set", "embed_dim=48")])
def test_another_base_is_refused_and_nothing_is_written(
    run: Run, adapter: Adapter, tmp_path: Path, words: tuple[str, ...]
) -> None:
    state = {key: value + 1 for key, value in base().state_dict().items()}
    torch.save(state, tmp_path / "other.pth")
    other = words or ("--checkpoint", "other.pth")
    before = sorted(tmp_path.iterdir())
    result = run("fold", TIMM, adapter[0], "--out", "folded", *SETTINGS, *other, code=1)
    assert "do not fit" in result.stderr and "hint:" in result.stderr
    assert [p for p in sorted(tmp_path.iterdir()) if p.name != "__pycache__"] == before


def test_an_interruption_leaves_no_half_files(
    run: Run, adapter: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(tensors: object, path: Path, metadata: object) -> None:
        path.write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(safetensors.torch, "save_file", interrupt)
    before = sorted(tmp_path.iterdir())
    result = run("fold", TIMM, adapter[0], "--out", "folded", *SETTINGS, code=130)
    assert "interrupted" in result.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_export_with_an_adapter_is_verified_and_fused(
    run: Run, adapter: Adapter, tmp_path: Path
) -> None:
    words = ("export", TIMM, *SETTINGS, "--adapter", adapter[0], "--out", "model.onnx", "--json")
    report = run(*words)
    assert report["passed"] and report["attention"] == {"sites": 2, "fused": 2, "unfused": []}
    told = run("info", "model.onnx", "--json")
    assert told["target"] == "cpu" and told["operators"]["com.microsoft::Attention"] == 2
    assert told["metadata"]["policies"][0]["name"] == "vit-attn-qv"
    assert "--overwrite" in (again := run(*words[:-1], code=1).stderr) or "overwrite" in again
    assert (tmp_path / "model.portable.onnx").exists()


def test_an_export_that_fails_verification_says_so_with_its_report(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import exporters

    class Report:
        passed = False

        def to_dict(self) -> dict[str, bool]:
            return {"passed": False}

        def __rich__(self) -> str:
            return "rejected"

    def fail(*_: object, **__: object) -> None:
        error = exporters.VerificationError("1 of 2 exported files failed verification")
        error.report = Report()  # type: ignore[assignment]
        raise error

    monkeypatch.setattr(exporters, "to_onnx", fail)
    result = run("export", TIMM, *SETTINGS, "--out", "model.onnx", "--json", code=1)
    assert result == {"passed": False}
    assert "failed verification" in run("export", TIMM, *SETTINGS, "-o", "m.onnx", code=1).stderr


def test_an_unwritable_path_is_refused(run: Run, adapter: Adapter, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in ("file", "file/below"):
        result = run("fold", TIMM, adapter[0], "--out", out, *SETTINGS, code=1)
        assert result.stderr.count("error:") == 1 and "cannot be written" in result.stderr
    result = run("export", TIMM, *SETTINGS, "--out", "file/model.onnx", code=1)
    assert result.stderr.count("error:") == 1


def test_bench_measures_the_files_given(run: Run, onnx_file: Path) -> None:
    report = run(
        "bench", TIMM, *SETTINGS, "--onnx", onnx_file, "--rounds", 1, "--calls", 2, "--batch", 3,
        "--no-compile", "--json",
    )  # fmt: skip
    assert [row["name"] for row in report["rows"]] == ["torch eager", str(onnx_file)]
    assert list(report["sizes"].values()) == [[3, 3, 32, 32]] and report["calls"] == 2
    assert json.dumps(report)
