"""``surgery doctor``: what is installed, what is missing, what gets in each other's way."""

from __future__ import annotations

import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text

from surgery.cli.failures import FAILED
from surgery.cli.output import Json, emit, working
from surgery.errors import told_by

REQUIRED = ("torch", "timm", "transformers", "onnx", "onnxscript", "safetensors", "pydantic")
RUNTIMES = ("onnxruntime", "onnxruntime-gpu")
OPTIONAL = ("peft", "lightning", "accelerate", "datasets", "tensorboard", "matplotlib")
CUDA = "CUDAExecutionProvider"


def doctor(as_json: Json = False) -> None:
    """Say what is installed, what is missing, and what to install. Exit 1 if something must be done.

    Example: surgery doctor
    """
    with working("looking around"):
        plain = examine()
    emit(plain, _table(plain), as_json)
    raise typer.Exit(FAILED if plain["problems"] else 0)


def examine() -> dict[str, Any]:
    """Versions, devices, providers, problems and notes as plain data."""
    versions = {
        name: installed(name) for name in ("model-surgery", *REQUIRED, *RUNTIMES, *OPTIONAL)
    }
    providers, failure = _providers()
    gpus = _gpus()
    problems, notes = _missing(versions), []
    problems += _runtime_problems(versions, failure)
    if gpus and CUDA not in providers and not problems:
        notes.append("there is a GPU and ONNX Runtime cannot use it: pip uninstall onnxruntime, "
                     "then pip install 'model-surgery[gpu]'")  # fmt: skip
    if not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
        notes.append("no C++ compiler: torch.compile takes no part in surgery bench on the CPU")
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": versions,
        "gpus": gpus,
        "providers": providers,
        "problems": problems,
        "notes": notes,
    }


def installed(package: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _missing(versions: dict[str, str | None]) -> list[str]:
    return [f"{name} is missing: pip install {name}" for name in REQUIRED if not versions[name]]


def _runtime_problems(versions: dict[str, str | None], failure: str | None) -> list[str]:
    there = [name for name in RUNTIMES if versions[name]]
    if len(there) == 2:
        return ["onnxruntime and onnxruntime-gpu overwrite each other: pip uninstall both, then "
                "pip install 'model-surgery[cpu]' or 'model-surgery[gpu]'"]  # fmt: skip
    if not there:
        return ["ONNX Runtime is missing: pip install 'model-surgery[cpu]' (or [gpu])"]
    return [f"{there[0]} is installed and does not import: {failure}"] if failure else []


def _providers() -> tuple[list[str], str | None]:
    try:
        import onnxruntime

        return list(onnxruntime.get_available_providers()), None
    except Exception as error:  # a clash of packages fails in many ways
        return [], told_by(error)


def _gpus() -> list[str]:
    try:
        import torch
    except ImportError:
        return []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def _table(plain: dict[str, Any]) -> Group:
    table = Table(title=f"Python {plain['python']} on {plain['platform']}", title_justify="left")
    table.add_column("package")
    table.add_column("version")
    for name, found in plain["versions"].items():
        table.add_row(name, found or "-")
    table.add_row("GPUs", ", ".join(plain["gpus"]) or "-")
    table.add_row("providers", ", ".join(plain["providers"]) or "-")
    lines = [f"problem: {text}" for text in plain["problems"]]
    lines += [f"note: {text}" for text in plain["notes"]]
    return Group(table, *map(Text, lines or ["all is well"]))
