"""docs/cli.md is true: each of its commands runs, in the order in which it is written."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import typer
from torch import nn

from surgery.cli import app

from .conftest import SETTINGS, TIMM, Run, trained

TEXT = (Path(__file__).parents[3] / "docs/cli.md").read_text(encoding="utf-8")
LINES = [
    shlex.split(line, comments=True)[1:]
    for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    for line in block.splitlines()
]
NOT_HERE = ["--pretrained", "--set", "num_classes=10"]
"""Downloads are left out, and the model is built small, as the adapter file's was."""


def test_the_commands_of_the_page_run(
    run: Run, adapter: tuple[Path, nn.Module], bert: Path, tmp_path: Path
) -> None:
    shutil.copy(adapter[0], tmp_path / "adapter.safetensors")
    shutil.copytree(bert, tmp_path / "my-bert")
    trained(tmp_path / "other.safetensors", seed=2)
    for line in LINES:
        words = line[: line.index(">")] if ">" in line else line
        small = [word for word in words if word not in NOT_HERE]
        quick = ["--rounds", 1, "--calls", 1] if "bench" in words else []
        run(*small, *(SETTINGS if TIMM in words else ()), *quick)
    assert (tmp_path / "folded/model.safetensors").is_file()
    assert (tmp_path / "model.portable.onnx").is_file()


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
