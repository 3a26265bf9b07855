"""Fuzzed policies, training files and names, new ones and those that are kept: one clear error each, or none."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import policies
import surgery
from surgery.runs import training_file
from tests.trust import corpus
from tests.trust.architectures import build
from tests.trust.conftest import Tally
from tests.trust.faults import contents
from tests.trust.settings import examples
from tests.trust.small import WHOLE
from tests.trust.test_hostile_files import refusal


@pytest.fixture(scope="module")
def anatomy() -> surgery.Anatomy:
    return surgery.read(build(WHOLE), torch.zeros(2, 5, WHOLE.width))


def answer(work: Any) -> surgery.SurgeryError | None:
    """The refusal, which says what, why and what to do in bounds; any other exception goes through."""
    error = refusal(work)
    assert error is None or (error.what and error.remedy and len(str(error)) < 80_000)
    return error


@pytest.mark.parametrize("file", corpus.POLICIES, ids=lambda file: file.stem)
def test_policies_that_are_kept(
    file: Path, tmp_path: Path, anatomy: surgery.Anatomy, tally: Tally
) -> None:
    path = Path(shutil.copy(file, tmp_path))
    before = contents(tmp_path)
    answer(lambda: surgery.plan(build(WHOLE), policies.get(path), anatomy=anatomy))
    assert contents(tmp_path) == before and not Path("exploded").exists()
    tally["files"] += 1


@pytest.mark.parametrize("file", corpus.TRAININGS, ids=lambda file: file.stem)
def test_training_files_that_are_kept(file: Path, tmp_path: Path, tally: Tally) -> None:
    path = Path(shutil.copy(file, tmp_path))
    before = contents(tmp_path)
    error = answer(lambda: training_file.load(path))
    bearable = {"model-of-the-interpreter", "model-of-three-colons", "model-set-to-itself"}
    bearable |= {"model-of-a-relative-module"}  # a model is looked for later, and refused then
    assert (error is None) is (file.stem in bearable)
    assert contents(tmp_path) == before and not Path("exploded").exists()
    tally["files"] += 1


KEYS = st.sampled_from(
    ["model", "policy", "data", "optimizer", "schedule", "output", "precision", "seed", "device", "x"]
)  # fmt: skip
INNER = st.sampled_from(
    ["name", "images", "table", "lr", "epochs", "batch", "folder", "set", "rank", "split", "steps",
     "keep", "early_stop", "budget", "options", "betas"]
)  # fmt: skip
VALUES = st.text(max_size=8) | st.sampled_from(
    ["timm:x", "vit-attn-qv", "x", "0", "-1", "1e999", ".nan", "9" * 5000, "~", "[]", "{}", "[1, {a: b}]",
     "true", "auto", "bf16", "&a b", "*a", "!!python/name:os.system", "<<: {a: b}", "2020-13-41", "{[", "'"]
)  # fmt: skip
MAPPINGS = st.lists(st.tuples(INNER, VALUES), max_size=3).map(
    lambda pairs: "{" + ", ".join(f"{key}: {value}" for key, value in pairs) + "}"
)
FILES = st.dictionaries(KEYS, MAPPINGS | VALUES, max_size=8).map(
    lambda pairs: "".join(f"{key}: {value}\n" for key, value in pairs.items())
)


def test_the_training_file_parser(tmp_path: Path, tally: Tally) -> None:
    path = tmp_path / "run.yaml"

    @examples(60)
    @given(FILES.map(lambda text: text.encode("utf-8", "replace")) | st.binary(max_size=60))
    def holds(content: bytes) -> None:
        path.write_bytes(content)
        with corpus.kept("trainings", content):
            error = answer(lambda: training_file.load(path))
            assert error is None or "run.yaml" in str(error)
        tally["files"] += 1

    holds()


def test_names(anatomy: surgery.Anatomy, tally: Tally) -> None:
    """As an adapter, an option, a policy, a role, a part, a depth, what trains: known, or refused."""
    model = build(WHOLE)

    def holds(name: str) -> None:
        query: dict[str, Any] = {"select": [{"roles": ["query"]}]}
        asked: list[Any] = [
            name,
            {**query, "adapter": name},
            {**query, "adapter": {"kind": "lora", name: 1}},
            {"select": [{"roles": [name]}]},
            {"select": [{"roles": ["query"], "depth": name}]},
            {"select": [{"roles": ["query"], "part": name}]},
            {"select": [{"modules": [name]}]},
            {"train": [name]},
            {**query, "budget": name},
            {"extends": name},
        ]
        for policy in asked:
            answer(lambda policy=policy: surgery.plan(model, policy, anatomy=anatomy))
            tally["cases"] += 1

    for name in corpus.NAMES:
        holds(name)
    examples(6)(given(st.text(max_size=30))(holds))()
