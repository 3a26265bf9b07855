"""The promises under many cases: runs ``tests/trust`` at a larger size and counts what was tried.

    python -m benchmarks.trust [--scale 2] [--only commands numbers]

The tests themselves hold a bounded, reproducible share; here hypothesis draws new cases each time.
Whatever fails is printed with what hypothesis needs to reproduce it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.record import keep, load
from benchmarks.switching import switched

ROOT = Path(__file__).parents[1]
SECTIONS = {
    "life_of_a_model": 8.0,
    "hostile_files": 12.0,
    "corpus": 12.0,
    "numbers": 34.0,
    "tensor_faults": 10.0,
    "file_faults": 5.0,
    "folder_faults": 1.0,
    "life_cycle": 26.0,
    "commands": 5.0,
}
"""How many times the share of the tests; with 34 the cycles in bfloat16 are more than a thousand."""
COLUMNS = ("cases", "faults", "kills", "interrupts", "files", "cycles", "weights folded", "exports")


@dataclass(frozen=True)
class Section:
    """What one file of tests tried.

    Attributes:
        tried: Counts by word.
        tests: Tests that passed.
        failures: Tests that failed.
        seconds: Wall clock.
    """

    name: str
    tried: dict[str, int]
    tests: int
    failures: int
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="more, or fewer, of everything")
    parser.add_argument(
        "--only", nargs="+", choices=SECTIONS, help="the others stay as they are kept"
    )
    parser.add_argument("--jobs", type=int, default=2, help="sections at a time")
    options = parser.parse_args()
    with ThreadPoolExecutor(options.jobs) as pool:
        found = pool.map(lambda name: run(name, options.scale), options.only or SECTIONS)
        sections = _beside_kept(list(found)) if options.only else list(found)
    curve = switched(200)
    Console(width=140).print(table(sections))
    print(
        "200 switches in bfloat16, |base - exact| / |exact|:",
        ", ".join(f"{name} {values[-1]:.1e}" for name, values in curve.items()),
    )
    keep("trust", {"sections": [asdict(section) for section in sections], "switches": curve})
    sys.exit(any(section.failures for section in sections))


def run(name: str, scale: float) -> Section:
    """Run one file of tests in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        tally = Path(folder) / "tally"
        many = str(max(1.001, SECTIONS[name] * scale))
        environment = os.environ | {"TRUST_TIMES": many, "TRUST_TALLY": str(tally)}
        command = [sys.executable, "-m", "pytest", "-q", "-m", "not gpu", "--tb=short"]
        command += ["-p", "no:logging", "--show-capture=no", f"tests/trust/test_{name}.py"]
        started = time.perf_counter()
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        seconds = time.perf_counter() - started
        tried: Counter[str] = Counter()
        for line in tally.read_text().splitlines() if tally.exists() else ():
            tried.update(json.loads(line))
    passed, failed = (_count(word, done.stdout) for word in ("passed", "failed"))
    if done.returncode:
        print(done.stdout[-20_000:], done.stderr[-2_000:], sep="\n")
        failed = max(failed, 1)
    return Section(name, dict(tried), passed, failed, seconds)


def _beside_kept(fresh: list[Section]) -> list[Section]:
    """The sections just run, and those of an earlier run, in the order in which all are run."""
    known = {kept["name"]: Section(**kept) for kept in load("trust")["sections"]}
    known |= {section.name: section for section in fresh}
    return [known[name] for name in SECTIONS if name in known]


def table(sections: list[Section]) -> Table:
    """One line a section, and the sum."""
    shown = Table("", *COLUMNS, "tests", "failures", "seconds", title="trust")
    for section in sections:
        shown.add_row(*_row(section))
    tried: Counter[str] = Counter()
    for section in sections:
        tried.update(section.tried)
    tests, failures = (sum(getattr(s, word) for s in sections) for word in ("tests", "failures"))
    seconds = sum(section.seconds for section in sections)
    shown.add_section()
    shown.add_row(*_row(Section("together", dict(tried), tests, failures, seconds)))
    return shown


def _row(section: Section) -> list[str]:
    counts = [f"{section.tried[word]:,}" if word in section.tried else "" for word in COLUMNS]
    ends = [str(section.tests), str(section.failures), f"{section.seconds:.0f}"]
    return [section.name.replace("_", " "), *counts, *ends]


def _count(word: str, text: str) -> int:
    found = re.findall(rf"(\d+) {word}", text)
    return int(found[-1]) if found else 0


if __name__ == "__main__":
    main()
