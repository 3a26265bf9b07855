"""A training file is read whole, or refused with its line and the near word."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from surgery.errors import RunError, SurgeryError
from surgery.runs import training_file
from surgery.runs.schema import RunSpec

GOOD = """\
model: timm:vit_tiny_patch16_224
policy: {name: vit-attn-qv, rank: 4}
data:
  images: flowers
optimizer:
  lr: 0.001
schedule:
  shape: cosine
output: {folder: runs/flowers}
"""

BAD = {
    # what is replaced, by what, the line, a word of the reason, the hint
    "key": ("  lr: 0.001", "  lrr: 0.001", 6, "no such key", "did you mean 'lr'"),
    "top": ("schedule:", "shedule:", 7, "no such key", "did you mean 'schedule'"),
    "choice": ("shape: cosine", "shape: cosin", 8, "'cosine', 'linear' or 'constant'", "'cosine'"),
    "number": ("lr: 0.001", "lr: -1", 6, "greater than 0", "--schema"),
    "model": ("timm:vit_tiny_patch16_224", "resnet", 1, "is none of timm:NAME", "--schema"),
    "policy": ("vit-attn-qv", "vit-attn-vq", 2, "the names are", "did you mean 'vit-attn-qv'"),
    "override": ("rank: 4", "rank: many", 2, "rank", "--schema"),
    "optimizer": ("  lr: 0.001", "  name: adamv", 6, "list_optimizers", "did you mean 'adam"),
    "source": ("  images: flowers", "  text: x", 3, "give one of images, dataset, table", ""),
    "twice": ("  images: flowers", "  images: a\n  images: b", 5, "given twice", "mend"),
}


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return path


def test_a_file_says_what_it_says(tmp_path: Path) -> None:
    spec, _ = training_file.load(written(tmp_path, GOOD))
    assert spec.model.name == "timm:vit_tiny_patch16_224" and spec.optimizer.lr == 0.001
    policy = training_file.policy_of(spec)
    assert policy.adapter.rank == 4


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_has_its_line_and_a_hint(tmp_path: Path, case: str) -> None:
    old, new, line, reason, hint = BAD[case]
    assert old in GOOD
    path = written(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(SurgeryError) as caught:
        training_file.load(path)
    assert caught.value.where == f"{path}:{line}"
    assert reason in str(caught.value.why) and hint in str(caught.value.remedy)


@pytest.mark.parametrize("text", ["a: [", "- 1", "", "\0"])
def test_no_yaml_is_said(tmp_path: Path, text: str) -> None:
    with pytest.raises(RunError, match="a training file"):
        training_file.load(written(tmp_path, text))


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"cannot be read(.|\n)*check the path"):
        training_file.load(tmp_path / "nothing.yaml")


def test_the_resolved_file_means_the_same(tmp_path: Path) -> None:
    spec, _ = training_file.load(written(tmp_path, GOOD))
    again, _ = training_file.load(written(tmp_path, training_file.write(spec)))
    assert again == spec
    assert yaml.safe_load(training_file.write(spec))["schedule"]["warmup"] == 0.1


def test_the_schema_knows_every_key() -> None:
    schema = training_file.json_schema()
    assert set(schema["properties"]) == set(RunSpec.model_fields)
    assert {"model", "policy", "data", "output"} == set(schema["required"])
