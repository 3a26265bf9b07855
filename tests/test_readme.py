"""The README's code runs as pasted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
RUNNABLE = [block for block in BLOCKS if block.startswith("import")]


def test_both_examples_are_there() -> None:
    assert len(RUNNABLE) == 2 and "timm" in RUNNABLE[0] and "transformers" in RUNNABLE[1]
    lines = [line for line in RUNNABLE[0].splitlines() if line.strip()]
    assert len(lines) <= 10, "the README promises ten lines"


@pytest.mark.parametrize("block", RUNNABLE, ids=["timm", "transformers"])
def test_the_example_runs_as_pasted(
    block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    if "to_onnx" in block:
        assert (tmp_path / "model.onnx").stat().st_size > 1_000_000
