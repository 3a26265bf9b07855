"""docs/cli.md is true: each of its commands runs, in the order in which it is written."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import typer
import yaml
from torch import nn

from surgery.cli import app

from .conftest import SETTINGS, SIZES, TIMM, Run, trained

TEXT = (Path(__file__).parents[3] / "docs/cli.md").read_text(encoding="utf-8")
LINES = [
    shlex.split(line, comments=True)[1:]
    for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    for line in block.splitlines()
]
PAGE = (Path(__file__).parents[3] / "docs/train-a-model.md").read_text(encoding="utf-8")
NOT_HERE = ["--pretrained", "--set", "num_classes=10"]
"""Downloads are left out, and the model is built small, as the adapter file's was."""


def flowers(folder: Path) -> None:
    """The data and the training file of docs/train-a-model.md, its model built small."""
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(block, "train-a-model.md", "exec"), {})
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    asked = yaml.safe_load(text)
    del asked["model"]["pretrained"]
    asked["model"]["set"] = {key: size for key, size in SIZES.items() if key != "num_classes"}
    asked["schedule"]["epochs"] = 1
    (folder / "flowers.yaml").write_text(yaml.safe_dump(asked))


@pytest.mark.slow
def test_the_commands_of_the_page_run(
    run: Run, adapter: tuple[Path, nn.Module], bert: Path, tmp_path: Path
) -> None:
    shutil.copy(adapter[0], tmp_path / "adapter.safetensors")
    shutil.copytree(bert, tmp_path / "my-bert")
    trained(tmp_path / "other.safetensors", seed=2)
    flowers(tmp_path)
    for line in LINES:
        words = line[: line.index(">")] if ">" in line else line
        small = [word for word in words if word not in NOT_HERE]
        quick = ["--rounds", 1, "--calls", 1] if "bench" in words else []
        run(*small, *(SETTINGS if TIMM in words else ()), *quick)
    assert (tmp_path / "folded/model.safetensors").is_file()
    assert (tmp_path / "model.portable.onnx").is_file()
    assert (tmp_path / "runs/flowers/model.onnx").is_file()


def test_the_commands_of_training_are_those_of_the_page() -> None:
    """So they are run above."""
    lines = re.findall(r"^surgery (.*?)(?:  +#.*)?$", "\n".join(
        re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)), re.MULTILINE)  # fmt: skip
    assert lines and all(shlex.split(line) in LINES for line in lines)


def test_every_command_is_on_the_page() -> None:
    group = typer.main.get_command(app)
    called = {line[0] for line in LINES}
    assert set(group.commands) == called
    policies = {line[1] for line in LINES if line[0] == "policies"}
    assert policies == set(group.commands["policies"].commands)


@pytest.mark.parametrize("option", sorted(set(re.findall(r"--[a-z][a-z-]+", TEXT))))
def test_every_option_of_the_page_is_one(option: str) -> None:
    group = typer.main.get_command(app)
    commands = [*group.commands.values(), *group.commands["policies"].commands.values(), group]
    known = {
        name
        for command in commands
        for parameter in command.params
        for name in (*parameter.opts, *parameter.secondary_opts)
    }
    assert option in known | {"--help"}
