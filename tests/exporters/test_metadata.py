"""What a file says about itself: preprocessing, labels, lineage; and nothing about this machine."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path

import onnxruntime as ort
import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

import exporters
import surgery
from exporters.errors import ExportError
from exporters.inputs import collect
from exporters.lineage import weights_fingerprint
from exporters.metadata import PREFIX, describe
from exporters.plain import plain_model
from exporters.private import local_paths, traces, without_paths
from surgery.cli.adapter_files import describe as describe_adapter

WORDS = {"[PAD]": 0, "[UNK]": 1, "cats": 2, "and": 3, "dogs": 4}


def tokenizer() -> hf.PreTrainedTokenizerFast:
    whole = Tokenizer(models.WordLevel(WORDS, unk_token="[UNK]"))
    whole.pre_tokenizer = pre_tokenizers.Whitespace()
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=whole, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
    )


def image_processor() -> hf.ViTImageProcessor:
    return hf.ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.3])


def about(model, **options) -> dict[str, object]:
    """What would be written into the file."""
    plain = plain_model(model)
    found = describe(plain, collect(plain.model), **options)
    return {key.removeprefix(PREFIX): json.loads(value) for key, value in found.items()}


def test_an_adapted_model_says_on_which_base_it_was_trained_and_how(build, tmp_path):
    model = surgery.apply(build("vit"), "vit-attn-qv", adapter="srlora", rank=2)
    saved = surgery.save(model, tmp_path / "a.safetensors")
    facts = about(model.eval())
    told = describe_adapter(surgery.adapter_file.read_file(saved))
    assert facts["fingerprint"]["base"] == told["base"]
    (adapters,) = facts["adapters"]
    assert (adapters["kind"], adapters["rank"], adapters["count"]) == ("srlora", 2, 4)
    assert adapters["roles"] == ["attention.query", "attention.value"]
    assert facts["policies"][0]["name"] == "vit-attn-qv"


def test_the_fingerprint_follows_the_weights_and_nothing_else(build):
    changed = build("vit")
    with torch.no_grad():
        changed.head.bias[0] += 1e-6
    one, again, other = map(weights_fingerprint, (build("vit"), build("vit"), changed))
    assert one == again != other
    assert about(changed)["fingerprint"] == {"weights": other}


def test_each_file_says_what_it_is(build, tmp_path):
    labels = [f"class {i}" for i in range(7)]
    options = {"accuracy": {"top-1": 0.8}, "labels": labels, "verify": False}
    exporters.to_onnx(build("vit"), tmp_path / "m.onnx", **options)
    fused, portable = (exporters.facts(tmp_path / n) for n in ("m.onnx", "m.portable.onnx"))
    assert (fused["target"], portable["target"]) == ("cpu", "portable")
    assert {facts["precision"] for facts in (fused, portable)} == {"fp32"}
    assert {facts["opset"] for facts in (fused, portable)} == {20}
    assert fused["accuracy"] == portable["accuracy"] == {"top-1": 0.8}
    session = ort.InferenceSession(tmp_path / "m.onnx")  # a reader needs nothing else
    found = session.get_modelmeta().custom_metadata_map
    assert json.loads(found["model_surgery.labels"]) == labels
    assert json.loads(found["model_surgery.preprocessing"])["crop_pct"] == 0.9


def test_an_image_processor_travels_with_the_file(build):
    facts = about(build("hf-vit"), processor=image_processor())
    assert facts["preprocessing"]["size"] == {"height": 32, "width": 32}
    assert facts["preprocessing"]["image_mean"] == [0.1, 0.2, 0.3]


def test_a_tokenizer_travels_whole(build):
    facts = about(build("bert"), processor=tokenizer())
    assert facts["preprocessing"]["pad_token_id"] == 0
    assert facts["preprocessing"]["model_max_length"] == 16
    text = zlib.decompress(base64.urlsafe_b64decode(facts["tokenizer"])).decode()
    assert Tokenizer.from_str(text).encode("dogs and birds").ids == [4, 3, 1]


@pytest.mark.parametrize(("name", "processor"), [("bert", tokenizer), ("hf-vit", image_processor)])
def test_a_transformers_model_knows_the_folder_it_came_from(name, processor, build, tmp_path):
    build(name).save_pretrained(tmp_path / "folder")
    processor().save_pretrained(tmp_path / "folder")
    model = type(build(name)).from_pretrained(tmp_path / "folder").eval()
    facts, told = about(model), about(model, processor=processor())
    assert facts["preprocessing"] == told["preprocessing"]
    assert facts.get("tokenizer") == told.get("tokenizer")
    assert not list(local_paths(json.dumps(facts)))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"labels": ["a", "b"]}, "the model has 7 classes"),
        ({"accuracy": {"top-1": float("nan")}}, "no finite number"),
        ({"metadata": {"data": f"{Path.home()}/photos"}}, "is a local path"),
        ({"metadata": {"fingerprint": "mine"}}, "the exporter itself writes"),
        ({"preprocessing": 3}, "takes a mapping"),
        ({"processor": 3}, "no image processor"),
        ({"processor": tokenizer(), "preprocessing": {}}, "takes its place"),
    ],
    ids=["labels", "accuracy", "path", "taken", "preprocessing", "processor", "both"],
)
def test_what_would_be_wrong_in_the_file_is_refused_before_the_work(
    options, reason, build, tmp_path
):
    with pytest.raises(ExportError, match=reason):
        exporters.to_onnx(build("vit"), tmp_path / "m.onnx", **options)
    assert list(tmp_path.iterdir()) == []


def test_local_paths_are_told_from_other_strings(tmp_path):
    inside = [f"see {tmp_path}/x", f'"{tmp_path}"', "C:\\Users\\me", "~/models/vit"]
    outside = ["/m/09x0r/a", "image/png", "https://a.org/tmp/x", "n/a", "</s>", "1/2/3"]
    assert all(list(local_paths(text)) for text in inside)
    assert not any(list(local_paths(text)) for text in outside)
    kept = without_paths({"a": str(tmp_path), "b": {"c": str(tmp_path), "d": 1}, "e": ["x"]})
    assert kept == {"b": {"d": 1}, "e": ["x"]}
    assert traces(f'File "{Path.cwd()}/a.py", line 3')


class Scores(nn.Module):
    """A model that does not say how many classes it has."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(4, classes)

    def forward(self, x):
        return self.layer(x)


class Several(Scores):
    """Features first, then scores; whole numbers that count nothing."""

    def forward(self, x):
        return x, super().forward(x), x.long()


def test_labels_may_be_of_any_output(tmp_path):
    given = {"example_inputs": torch.randn(2, 4), "labels": ["a", "b", "c"], "verify": False}
    exporters.to_onnx(Several(3).eval(), tmp_path / "m.onnx", **given)
    with pytest.raises(ExportError, match="4 or 5 numbers a row"):
        exporters.to_onnx(Several(5).eval(), tmp_path / "n.onnx", **given)


@pytest.mark.parametrize(("classes", "fits"), [(3, False), (2, True), (1, True)])
def test_labels_are_as_many_as_numbers_in_a_row(classes, fits, tmp_path):
    """A lone number may stand for two classes."""
    given = {"example_inputs": torch.randn(2, 4), "labels": ["cat", "dog"], "verify": False}
    path = tmp_path / "m.onnx"
    if fits:
        exporters.to_onnx(Scores(classes).eval(), path, **given)
        assert exporters.facts(path)["labels"] == ["cat", "dog"]
        return
    with pytest.raises(ExportError, match="3 numbers a row"):
        exporters.to_onnx(Scores(classes).eval(), path, **given)
    assert list(tmp_path.iterdir()) == []
