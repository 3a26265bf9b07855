"""What holds for every command: help, exit codes, clear errors, a fast start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer
from transformers import BertConfig, BertModel
from typer.testing import CliRunner

from surgery.cli import app, machine

from .conftest import SETTINGS, TIMM, Run

GROUP = typer.main.get_command(app)
COMMANDS = [(name,) for name in GROUP.commands if name != "policies"] + [
    ("policies", name) for name in GROUP.commands["policies"].commands
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_has_an_example(run: Run, command: tuple[str, ...]) -> None:
    text = " ".join(run(*command, "--help").stdout.split())
    assert f"Example: surgery {' '.join(command)}" in text
    assert "--json" in text or command[-1] == "schema"


def test_help_imports_no_torch() -> None:
    code = (
        "import sys\nfrom surgery.cli import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'timm', 'transformers', 'onnx'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


USAGE = [
    ("inspect",),
    ("inspect", "resnet"),
    ("inspect", "timm:"),
    ("inspect", TIMM, "--set", "depth"),
    ("inspect", TIMM, "--set", "depth=2026-13-13"),
    ("inspect", TIMM, "--set", f"depth=0x{'f' * 4000}"),
    ("inspect", TIMM, "--input", "2xthree"),
    ("inspect", TIMM, "--input", "2x3:int9"),
    ("inspect", TIMM, "--meta", "--verify"),
    ("inspect", TIMM, "--meta", "--pretrained"),
    ("inspect", "factories_for_cli:tiny", "--pretrained"),
    ("plan", TIMM),
    ("plan", TIMM, "--policy", "vit-attn-qv", "--rank", "many"),
    ("export", TIMM, "--out", "x.onnx", "--target", "tpu"),
    ("policies", "new", "../mine"),
    ("operate",),
]


@pytest.mark.parametrize("words", USAGE, ids=lambda words: " ".join(words)[:60])
def test_wrong_usage_is_exit_code_2(run: Run, words: tuple[str, ...]) -> None:
    result = run(*words, code=2)
    assert "Traceback" not in result.stderr and result.stdout == ""


FAILURES = {
    ("inspect", "timm:vit_tiny_patch16_225"): "did you mean 'vit_tiny_patch16_224'",
    ("inspect", "hf:./nowhere"): "no such folder",
    ("inspect", "no_such_module:tiny"): "no_such_module",
    ("inspect", "factories_for_cli:tyni"): "did you mean 'tiny'",
    ("inspect", "factories_for_cli:number"): "not a torch module",
    ("inspect", "factories_for_cli:broken"): "ZeroDivisionError: no such luck",
    ("inspect", TIMM, "--set", "colour=red"): "colour",
    ("inspect", TIMM, "--checkpoint", "nothing.pth"): "hint: check the path",
    (
        "inspect",
        TIMM,
        "--checkpoint",
        "factories_for_cli.py",
    ): "torch.save(model.state_dict(), path)",
    ("plan", TIMM, *SETTINGS, "-p", "nowhere.yaml"): "(here: surgery policies list)",
    ("plan", TIMM, *SETTINGS, "-p", "vit-attn-vq"): "did you mean 'vit-attn-qv'",
    ("plan", TIMM, *SETTINGS, "-p", "vit-attn-qv", "--rank", "99"): "rank 99",
    ("plan", TIMM, *SETTINGS, "-p", "vit-attn-qv", "--option", "gamma=1"): "gamma",
    ("fold", TIMM, "nothing.safetensors", "--out", "x", *SETTINGS): "nothing.safetensors",
}


@pytest.mark.parametrize("words", FAILURES, ids=lambda words: " ".join(words[:2] + words[-2:]))
def test_a_failure_is_a_line_and_a_hint(run: Run, words: tuple[str, ...], tmp_path: Path) -> None:
    result = run(*words, "--json", code=1)
    said = result.stderr[result.stderr.index("error: ") :]
    assert FAILURES[words] in said and "\nhint: " in said
    assert "Traceback" not in result.stderr and result.stdout == ""
    assert not (tmp_path / "x").exists()


def test_ctrl_c_is_exit_code_130(run: Run) -> None:
    assert "interrupted" in run("inspect", "factories_for_cli:interrupted", code=130).stderr


def test_debug_raises_what_happened(run: Run) -> None:
    result = CliRunner().invoke(app, ["--debug", "inspect", "factories_for_cli:broken"])
    assert isinstance(result.exception.__cause__, ZeroDivisionError)


def test_the_unforeseen_is_a_line_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(machine, "examine", fail)
    said = run("doctor", code=1).stderr
    assert "RuntimeError: first line\n" in said and "second" not in said and "--debug" in said


def test_doctor_finds_this_machine_well(run: Run) -> None:
    told = run("doctor", "--json")
    assert told["problems"] == [] and told["versions"]["torch"]
    assert "CPUExecutionProvider" in told["providers"]
    assert "all is well" in run("doctor").stdout or told["notes"]


@pytest.mark.parametrize(
    ("versions", "words"),
    [
        ({"onnxruntime": "1", "onnxruntime-gpu": "1"}, "overwrite each other"),
        ({"onnxruntime": None, "onnxruntime-gpu": None}, "ONNX Runtime is missing"),
        ({"timm": None}, "pip install timm"),
    ],
)
def test_doctor_says_what_to_do(
    run: Run, monkeypatch: pytest.MonkeyPatch, versions: dict[str, str | None], words: str
) -> None:
    real = machine.installed
    monkeypatch.setattr(machine, "installed", lambda name: versions.get(name, real(name)))
    told = run("doctor", "--json", code=1)
    assert len(told["problems"]) == 1 and words in told["problems"][0]
    printed = " ".join(run("doctor", code=1).stdout.split())
    assert f"problem: {told['problems'][0]}" in printed


def test_what_libraries_print_stays_off_stdout(run: Run, tmp_path: Path) -> None:
    (tmp_path / "chatty_for_cli.py").write_text(
        "from factories_for_cli import tiny\ndef model():\n    print('hello')\n    return tiny(1)\n"
    )
    assert run("inspect", "chatty_for_cli:model", "--json")["sites"]


@pytest.mark.parametrize("charset", ["ascii", "cp1252"])
def test_a_pipe_without_arrows_gets_question_marks(run: Run, charset: str) -> None:
    """What a Windows pipe and LC_ALL=C are to Python."""
    words = ["inspect", TIMM, *SETTINGS]
    result = CliRunner(charset=charset).invoke(app, words)
    assert result.exit_code == 0, result.stderr
    assert "32 ? 32" in result.stdout and "attention.query" in result.stdout


def test_weights_that_are_cut_short_are_said(run: Run, tmp_path: Path) -> None:
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)
    BertModel(config).save_pretrained(tmp_path / "bert")
    file = tmp_path / "bert/model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    said = run("inspect", "hf:bert", code=1).stderr
    assert "hint: copy or download the weights again" in said
