"""The model card: valid for hubs, true to the files, silent about this machine."""

from __future__ import annotations

import hashlib
import re

import huggingface_hub
import onnxruntime as ort
import pytest
import timm

import exporters
import surgery
from exporters import maker
from exporters.card import task_of
from exporters.private import local_paths, traces
from exporters.verify import Verification


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A verified export; the tests only read it."""
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=7)
    surgery.apply(model, "vit-attn-qv", rank=2).eval()
    path = tmp_path_factory.mktemp("export") / "cats.onnx"
    facts = {"license": "mit", "base_model": "someone/vit"}
    return exporters.to_onnx(model, path, accuracy={"top-1": 0.8125}, metadata=facts)


def test_the_front_matter_is_what_hubs_read(exported):
    card = huggingface_hub.ModelCard.load(exported.card)
    assert card.data.library_name == "onnx"
    assert card.data.pipeline_tag == "image-classification"
    assert (card.data.license, card.data.base_model) == ("mit", "someone/vit")
    assert card.data.metrics == ["top-1"]


def test_the_card_says_of_each_file_what_it_is(exported):
    text = exported.card.read_text()
    assert exported.card.name == "cats.md"
    for file in exported.files:
        assert hashlib.sha256(file.path.read_bytes()).hexdigest() in text
        assert f"`{file.path.name}`: verified, largest relative error" in text
    facts = exporters.facts(exported.files[0].path)
    assert facts["fingerprint"]["base"] in text
    for part in ("| top-1 | 0.8125 |", "| symlora | 2 | 2 |", "batch x 3 x 32 x 32", "crop_pct"):
        assert part in text


def test_a_model_that_was_trained_without_adapters_has_a_card(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=7)
    surgery.apply(model, "head-only").eval()
    report = exporters.to_onnx(model, tmp_path / "cats.onnx", portable=False)
    text = report.card.read_text()
    assert exporters.facts(report.files[0].path)["fingerprint"]["base"] in text
    assert "| adapters |" not in text


def test_the_cards_example_runs(exported, monkeypatch, capsys):
    monkeypatch.chdir(exported.card.parent)
    (code,) = re.findall(r"```python\n(.*?)```", exported.card.read_text(), re.DOTALL)
    exec(compile(code, "card", "exec"), {})
    assert "['x']" in capsys.readouterr().out
    assert ort.InferenceSession("cats.onnx").get_inputs()[0].name == "x"


def test_the_card_tells_nothing_of_this_machine(exported):
    text = exported.card.read_text()
    assert not traces(text)
    assert not list(local_paths(text))


def test_no_card_without_a_file(build, tmp_path, monkeypatch):
    monkeypatch.setattr(maker, "verify", lambda *_, **__: Verification(problems=["because"]))
    with pytest.raises(exporters.VerificationError):
        exporters.to_onnx(build("vit"), tmp_path / "model.onnx", target="portable")
    assert not list(tmp_path.glob("*.md"))


def test_an_existing_card_is_kept(build, tmp_path):
    (tmp_path / "model.md").write_text("mine")
    with pytest.raises(exporters.ExportError, match="exists already"):
        exporters.to_onnx(build("vit"), tmp_path / "model.onnx")
    assert (tmp_path / "model.md").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("vit", "image-classification"),
        ("hf-vit", "image-classification"),
        ("bert", "text-classification"),
        ("gpt2", "text-generation"),
        ("albert", None),
    ],
)
def test_the_task_follows_from_the_class(name, task, build):
    assert task_of(build(name)) == task
