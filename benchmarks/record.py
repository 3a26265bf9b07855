"""Keeping results: figures with the versions, threads and machine they were measured on."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from surgery.atomic import replace_file

RESULTS = Path(__file__).parent / "results"
_PACKAGES = (
    "torch",
    "timm",
    "transformers",
    "peft",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
)


def environment() -> dict[str, Any]:
    """What a reader needs to judge a figure."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def _processor() -> str:
    """The processor's name, which on Linux the kernel alone knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), platform.processor())


def keep(name: str, figures: Any) -> Path:
    """Write figures to ``benchmarks/results/<name>.json``, whole or not at all."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    text = json.dumps({"environment": environment(), "figures": figures}, indent=2)
    replace_file(path, f"{text}\n".encode())
    return path


def keep_beside(name: str, key: str, figures: Any) -> Path:
    """Write figures under ``key``, and leave what was kept under other keys."""
    before = load(name) if (RESULTS / f"{name}.json").exists() else {}
    return keep(name, {**before, key: figures})


def load(name: str) -> Any:
    """The figures of ``benchmarks/results/<name>.json``.

    Raises:
        FileNotFoundError: If they were not kept yet.
    """
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["figures"]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
