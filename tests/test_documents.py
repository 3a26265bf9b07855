"""The documents are true: their code runs, and what they list is what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import policies
from policies.registry import LIBRARY

DOCS = Path(__file__).parent.parent / "docs"
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)
CODE = [
    pytest.param(block, id=f"{path.stem}-{number}")
    for path in sorted(DOCS.glob("*.md"))
    for number, block in enumerate(PYTHON.findall(path.read_text(encoding="utf-8")))
]


@pytest.mark.parametrize("block", CODE)
def test_every_code_block_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "docs", "exec"), {"__name__": "docs"})


def test_every_policy_of_the_library_is_documented() -> None:
    text = (DOCS / "policies.md").read_text(encoding="utf-8")
    for path in LIBRARY.glob("*.yaml"):
        assert f"`{path.stem}`" in text, f"{path.stem} is missing from docs/policies.md"


def test_the_example_policies_are_valid() -> None:
    text = (DOCS / "policies.md").read_text(encoding="utf-8")
    first, *others = (
        policies.get(yaml.safe_load(example))
        for example in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    )
    assert first.adapter_of(first.select[1]).rank == 16 and first.select[0].rank
    assert {policy.budget for policy in others} == {None, "0.3%"}
