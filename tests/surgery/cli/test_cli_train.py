"""Three verbs on one file, from data to a verified file; and what is said when something is wrong."""

from __future__ import annotations

import csv
import errno
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import timm
import torch
import yaml
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    PreTrainedTokenizerFast,
)

from surgery.cli import trained
from surgery.cli.runs import _make_room
from surgery.cli.trained import source_of
from surgery.errors import RunError
from surgery.runs import checkpoints
from surgery.runs.folder import RunFolder
from surgery.runs.schema import RunSpec

from .conftest import Run

COLOURS = {"blue": (30, 30, 200), "red": (200, 30, 30)}
SIZES = {"depth": 2, "img_size": 32, "embed_dim": 32, "num_heads": 2}
GOOD, BAD, OTHER = (
    ["good", "great", "fine", "lovely"],
    ["bad", "awful", "poor", "sad"],
    ["the", "film", "was"],
)

SETTINGS = [word for k, v in SIZES.items() for word in ("--set", f"{k}={v}")]
IMAGES: dict[str, Any] = {
    "model": {"name": "timm:vit_tiny_patch16_224", "set": SIZES},
    "policy": {"name": "vit-attn-qv", "rank": 2},
    "data": {"images": "colours", "augment": False},
    "optimizer": {"lr": 0.02},
    "schedule": {"epochs": 2, "batch": 8},
    "output": {"folder": "runs/colours"},
    "device": "cpu",
}
TEXTS: dict[str, Any] = {
    "model": "hf:./bert",
    "policy": {"name": "text-attn-qv", "rank": 2, "train": ["head", "embeddings"]},
    "data": {"table": "reviews.csv", "split": 0.25},
    "optimizer": {"lr": 0.02},
    "schedule": {"epochs": 4, "batch": 8, "watch": "accuracy", "early_stop": 3},
    "output": {"folder": "runs/reviews", "tensorboard": False},
    "device": "cpu",
}


def write(path: Path, plain: dict[str, Any], **changes: Any) -> Path:
    whole = json.loads(json.dumps(plain))
    for key, value in changes.items():
        whole[key] = {**whole[key], **value} if isinstance(value, dict) else value
    path.write_text(yaml.safe_dump(whole, sort_keys=False))
    return path


@pytest.fixture
def images(run: Run, tmp_path: Path) -> Path:
    noise = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (tmp_path / "colours" / name).mkdir(parents=True)
        for number in range(10):
            pixels = (np.array(colour) + noise.normal(0, 60, (32, 32, 3))).clip(0, 255)
            Image.fromarray(pixels.astype("uint8")).save(tmp_path / f"colours/{name}/{number}.png")
    return write(tmp_path / "c.yaml", IMAGES)


@pytest.fixture
def texts(run: Run, tmp_path: Path) -> Path:
    words = random.Random(0)
    with (tmp_path / "reviews.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        for number in range(32):
            tone = (BAD, GOOD)[number % 2]
            text = " ".join(words.choices(tone, k=2) + words.choices(OTHER, k=2))
            rows.writerow([text, ("negative", "positive")[number % 2]])
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *GOOD, *BAD, *OTHER])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(tmp_path / "bert")
    BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=48, architectures=["BertForMaskedLM"],
    ).save_pretrained(tmp_path / "bert")  # fmt: skip
    return write(tmp_path / "t.yaml", TEXTS)


def test_three_verbs_on_one_file_of_images(run: Run, images: Path, tmp_path: Path) -> None:
    metrics = run("train", "c.yaml", "--json")
    assert metrics["validation"]["accuracy"] > 0.9 and metrics["folder"] == "runs/colours"
    there = tmp_path / "runs/colours"
    assert list(there.glob("tensorboard/events*"))

    assert run("fold", "c.yaml", "--json")["out"] == "runs/colours/folded"
    report = run("export", "c.yaml", "--json")
    assert report["passed"] and report["files"][0]["verification"]["top1"] is not None
    run("bench", "c.yaml", "--no-compile", "--rounds", 1, "--calls", 1)

    plain = timm.create_model("vit_tiny_patch16_224", **SIZES, num_classes=2).eval()
    plain.load_state_dict(safetensors.torch.load_file(there / "folded/model.safetensors"))
    image = timm.data.create_transform((3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=0.9)(
        Image.open(tmp_path / "colours/red/3.png")
    )[None]
    with torch.no_grad():
        expected = plain(image)
    assert json.loads((there / "labels.json").read_text())[int(expected.argmax())] == "red"
    session = onnxruntime.InferenceSession(there / "model.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)
    page = (there / "report.html").read_text()
    for section in ("curves", "updates", "eigenvalues", "fold", "latency", "export"):
        assert f'<section id="{section}">' in page


@pytest.mark.slow
def test_three_verbs_on_one_file_of_texts(run: Run, texts: Path, tmp_path: Path) -> None:
    metrics = run("train", "t.yaml", "--json")
    assert metrics["validation"]["accuracy"] > 0.8
    run("fold", "t.yaml")
    assert run("export", "t.yaml", "--json")["passed"]
    folder = tmp_path / "runs/reviews/folded"
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokens = AutoTokenizer.from_pretrained(folder)(
        ["lovely great film", "awful poor film"], return_tensors="pt", padding=True
    )
    answers = model(**tokens).logits.argmax(-1).tolist()
    assert [model.config.id2label[n] for n in answers] == ["positive", "negative"]


@pytest.mark.slow
def test_texts_without_labels_are_learned(run: Run, texts: Path, tmp_path: Path) -> None:
    from transformers import GPT2Config

    GPT2Config(
        vocab_size=16, n_embd=32, n_layer=2, n_head=2, architectures=["GPT2LMHeadModel"]
    ).save_pretrained(tmp_path / "gpt")
    write(
        texts, TEXTS, model="hf:./gpt", data={"label": None, "tokenizer": "bert"},
        policy={"train": ["norms"]}, schedule={"watch": "loss"},
    )  # fmt: skip
    metrics = run("train", "t.yaml", "--json")
    losses = [entry["eval_loss"] for entry in metrics["evaluations"]]
    assert losses[-1] < losses[0] and "accuracy" not in metrics["validation"]


def test_a_training_file_is_planned_with_the_ranks_that_its_data_ask_for(
    run: Run, images: Path, tmp_path: Path
) -> None:
    write(images, IMAGES, policy={"rank": "auto", "budget": "200"})
    made = run("plan", "c.yaml", "--out", "measured.yaml", "--json")
    ranks = [o["adapter"]["rank"] for o in made["operations"]]
    assert made["train"]["head"] and sum(ranks) * 33 <= 200 < (sum(ranks) + 1) * 33
    again = run("plan", "timm:vit_tiny_patch16_224", "-p", "measured.yaml", *SETTINGS, "--json")
    assert again["operations"] == made["operations"]
    assert "that is not taken" in run("plan", "c.yaml", "--out", "measured.yaml", code=1).stderr
    assert not (tmp_path / "runs").exists()


def test_beginning_anew_takes_away_what_the_run_delivered_and_nothing_else(
    run: Run, images: Path, tmp_path: Path
) -> None:
    there, elsewhere = tmp_path / "runs/colours", tmp_path / "elsewhere.onnx"
    (there / "folded").mkdir(parents=True)
    delivered = [there / name for name in ("model.onnx", "model.onnx.data", "model.md")]
    kept = [there / "notes.txt", elsewhere]
    for path in (*delivered, *kept, there / "adapter.safetensors"):
        path.write_text("old")
    (there / "fold.json").write_text(json.dumps({"out": str(there / "folded")}))
    files = [{"path": str(path)} for path in (there / "model.onnx", elsewhere)]
    told = {"files": files, "card": str(there / "model.md")}
    (there / "export.json").write_text(json.dumps(told))
    _make_room(RunFolder(there), images, overwrite=True)
    assert not any(path.exists() for path in (*delivered, there / "folded"))
    assert all(path.exists() for path in kept)


def test_a_report_that_cannot_be_drawn_does_not_fail_what_is_done(
    run: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("train", "c.yaml")
    assert "report.html" in run("report", "c.yaml").stdout

    def undrawn(folder: RunFolder) -> Path:
        raise RunError("the report needs matplotlib", remedy="pip install matplotlib")

    monkeypatch.setattr(trained, "write_report", undrawn)
    result = run("fold", "c.yaml")
    assert (tmp_path / "runs/colours/folded/model.safetensors").exists()
    assert "the report needs matplotlib: pip install matplotlib" in result.stderr


def test_a_run_is_not_trained_over(run: Run, images: Path, tmp_path: Path) -> None:
    (tmp_path / "runs/colours/checkpoints").mkdir(parents=True)
    assert "--resume goes on with it, --overwrite" in run("train", "c.yaml", code=1).stderr


FAILURES: dict[str, tuple[dict[str, Any], str, str]] = {
    "model": ({"model": "timm:vit_tiny_patch16_225"}, "no such model", "vit_tiny_patch16_224"),
    "data": ({"data": {"images": "colour"}}, "no such image folder", "relative to the folder"),
    "policy": ({"policy": "vit-attn-vq"}, "no policy named", "'vit-attn-qv'"),
    "key": ({"optimizer": {"lrr": 1}}, "c.yaml:", "'lr'"),
    "rank": ({"policy": {"name": "vit-attn-qv", "rank": 99}}, "rank 99", "rank=32"),
    "checkpoint": (
        {"model": {**IMAGES["model"], "checkpoint": "x.pth"}},
        "x.pth",
        "check the path",
    ),
    "classes": (
        {"model": {**IMAGES["model"], "set": {**SIZES, "num_classes": 7}}},
        "the data have 2: blue, red",
        "leave num_classes out",
    ),
    "options": ({"optimizer": {"options": {"colour": 1}}}, "does not take these", "leave out"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_mistake_is_a_line_and_a_hint(run: Run, images: Path, case: str) -> None:
    changes, words, hint = FAILURES[case]
    write(images, IMAGES, **changes)
    result = run("train", "c.yaml", "--json", code=1)
    said = result.stderr[result.stderr.index("error: ") :]
    assert words in said and hint in said[said.index("\nhint: ") :]
    assert "Traceback" not in result.stderr and result.stdout == ""


@pytest.mark.parametrize(
    "words",
    [
        ("train",),
        ("train", "c.yaml", "--resume", "--overwrite"),
        ("plan", "c.yaml", "--rank", "4"),
        ("plan", "timm:vit_tiny_patch16_224"),
        ("fold", "c.yaml", "adapter.safetensors"),
        ("fold", "timm:vit_tiny_patch16_224"),
        ("fold", "timm:vit_tiny_patch16_224", "adapter.safetensors"),
        ("export", "timm:vit_tiny_patch16_224"),
        ("export", "c.yaml", "--set", "depth=1"),
        ("bench", "timm:vit_tiny_patch16_224"),
    ],
    ids=" ".join,
)
def test_wrong_usage(run: Run, words: tuple[str, ...]) -> None:
    assert "Traceback" not in run(*words, code=2).stderr


@pytest.mark.parametrize("verb", ["fold", "export", "bench"])
def test_what_is_not_trained_cannot_be_delivered(run: Run, images: Path, verb: str) -> None:
    assert "hint: surgery train c.yaml" in run(verb, "c.yaml", code=1).stderr


def test_no_space_is_a_line_and_leaves_no_half_checkpoint(
    run: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, "replace_file", full)
    said = run("train", "c.yaml", code=1).stderr
    assert "a checkpoint cannot be written" in said and "No space left on device" in said
    assert "hint: make room" in said and "Traceback" not in said
    assert not list((tmp_path / "runs/colours/checkpoints").glob("checkpoint-*"))
    assert not (tmp_path / "runs/colours/adapter.safetensors").exists()


def test_a_broken_checkpoint_is_said(run: Run, images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs/colours/checkpoints/checkpoint-4"
    folder.mkdir(parents=True)
    (folder / "adapter.safetensors").write_bytes(b"whole")
    checkpoints.seal(folder)
    (folder / "adapter.safetensors").write_bytes(b"half")
    said = run("train", "c.yaml", "--resume", code=1).stderr
    assert "the checkpoint is broken" in said and "adapter.safetensors is not the file" in said


def test_another_run_is_not_resumed(run: Run, images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs/colours/checkpoints/checkpoint-4"
    folder.mkdir(parents=True)
    checkpoints.seal(folder)
    write(tmp_path / "runs/colours/config.yaml", IMAGES, optimizer={"lr": 0.5})
    assert "optimizer changed since it began" in run("train", "c.yaml", "--resume", code=1).stderr


def test_a_transformers_model_gets_the_head_that_the_data_need() -> None:
    spec = RunSpec.model_validate(TEXTS)
    heads = {"images": "Image", "texts": "Sequence"}
    for kind, name in heads.items():
        source = source_of(spec, ("a", "b"), kind)  # type: ignore[arg-type]
        assert source.auto == f"AutoModelFor{name}Classification"
        assert source.changes["id2label"] == {0: "a", 1: "b"}
    assert source_of(spec, (), "texts").auto is None


def test_the_schema_is_json(run: Run) -> None:
    assert "optimizer" in json.loads(run("train", "--schema").stdout)["properties"]


ROOT = Path(__file__).parents[3]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_ctrl_c_is_130_and_leaves_a_checkpoint(run: Run, images: Path, tmp_path: Path) -> None:
    write(images, IMAGES, schedule={"epochs": 400, "batch": 8})
    process = subprocess.Popen(
        [sys.executable, "-m", "surgery.cli", "train", "c.yaml"],
        cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    next(line for line in process.stderr if line.startswith("step "))
    process.send_signal(signal.SIGINT)
    said = process.stderr.read()
    assert process.wait(60) == 130 and "--resume goes on from" in said and "Traceback" not in said
    assert checkpoints.latest(tmp_path / "runs/colours/checkpoints") is not None


@pytest.mark.slow
def test_two_processes_train_as_one_does(run: Run, images: Path, tmp_path: Path) -> None:
    """Half the batch each: the same images, augmented alike, the same switches, the same weights."""
    policy = {"adapter": "srlora", "target_rank": 8}
    common: dict[str, Any] = {"policy": policy, "data": {"augment": True, "split": 0.2}}
    for name, batch in (("one", 8), ("two", 4)):
        output = {"folder": f"runs/{name}", "tensorboard": False}
        schedule = {"epochs": 3, "batch": batch}
        write(tmp_path / f"{name}.yaml", IMAGES, **common, schedule=schedule, output=output)
    run("train", "one.yaml")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    done = subprocess.run(
        [*launch, "--num_processes", "2", "-m", "surgery.cli", "train", "two.yaml", "--json"],
        cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout)  # one process speaks
    assert done.stderr.count("note: the weights are random") == 1
    assert metrics["processes"] == 2 and metrics["steps"] == 6
    one, two = (tmp_path / f"runs/{name}" for name in ("one", "two"))
    ours, theirs = (safetensors.torch.load_file(f / "adapter.safetensors") for f in (one, two))
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        torch.testing.assert_close(theirs[key], tensor, rtol=1e-5, atol=1e-5)
    layers = [json.loads((f / "layers.json").read_text())["layers"] for f in (one, two)]
    switches = [[layer["switches"] for layer in each.values()] for each in layers]
    assert switches[0] == switches[1] and any(switches[0])
