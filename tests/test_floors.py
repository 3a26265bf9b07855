"""Imports run one way: policies <- surgery <- exporters <- the command line."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("policies", "surgery", "exporters")
TOP = "surgery.cli"
SOURCES = [path for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py"))]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_in(name: str, packages: tuple[str, ...]) -> bool:
    return any(f"{name}.".startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("floor", FLOORS)
def test_a_floor_imports_only_from_itself_and_those_below(floor: str) -> None:
    above = (*FLOORS[FLOORS.index(floor) + 1 :], TOP, "examples", "benchmarks")
    sources = [path for path in SOURCES if is_in(name_of(path), (floor,))]
    house = [path for path in sources if not is_in(name_of(path), (TOP,))]
    assert len(house) > 3
    assert not [(name_of(p), name) for p in house for name in imported(p) if is_in(name, above)]


def test_adapters_know_tensors_and_no_models() -> None:
    allowed = ("policies", "surgery.adapters", "surgery.atomic", "surgery.errors")
    adapters = [path for path in SOURCES if is_in(name_of(path), ("surgery.adapters",))]
    pairs = [(name_of(path), name) for path in adapters for name in imported(path)]
    foreign = [pair for pair in pairs if is_in(pair[1], (*FLOORS, "timm", "transformers"))]
    assert pairs and not [pair for pair in foreign if not is_in(pair[1], allowed)]
