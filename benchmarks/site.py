"""What the documents site is built with: benchmark pages from the results that are kept, and equations as MathML.

mkdocs calls the functions whose names begin with ``on_``, see ``mkdocs.yml``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = "benchmarks.md"
_SOURCES = "files"
_OUTSIDE = re.compile(r"\]\(\.\./([^)#]+)\)")
_DISPLAY = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
_MATH = re.compile(r"<p>\.\. math::\s*(.*?)</p>", re.DOTALL)
_INLINE = re.compile(r":math:<code>(.*?)</code>", re.DOTALL)
_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):(<code>)~?")
_ROWS = 400


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the benchmark page, and the files outside ``docs`` that documents link to."""
    files.append(File.generated(config, PAGE, content=benchmark_page()))
    for page in Path(config.docs_dir).glob("*.md"):
        for target in _OUTSIDE.findall(page.read_text(encoding="utf-8")):
            place, path = f"{_SOURCES}/{target}", ROOT / target
            if path.is_file() and files.get_file_from_path(place) is None:
                files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links that leave ``docs`` go to the copies; a folder of results is on the benchmark page."""

    def link(found: re.Match[str]) -> str:
        is_file = (ROOT / found[1]).is_file()
        return f"]({_SOURCES}/{found[1]})" if is_file else f"]({PAGE})"

    return _DISPLAY.sub(lambda m: _mathml(m[1]), _OUTSIDE.sub(link, markdown))


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Equations and references of docstrings."""
    html = _MATH.sub(lambda m: _mathml(_unescaped(m[1])), html)
    html = _INLINE.sub(lambda m: convert(_unescaped(m[1])), html)
    return _ROLE.sub(r"\1", html)


def benchmark_page() -> str:
    """Every result that is kept, with the machine it was measured on, as tables."""
    parts = [
        "# Benchmarks",
        "Made from `benchmarks/results/` when this site was built. What each means, and how it was measured: "
        "[Performance](performance.md), [The way out](export.md), [Trust](trust.md), [The demo](demo.md).",
    ]
    for path in sorted(RESULTS.rglob("*.json")):
        kept = json.loads(path.read_text(encoding="utf-8"))
        name = path.relative_to(RESULTS).with_suffix("").as_posix()
        parts += [f"## {name}", _machine(kept.get("environment", {}))]
        parts.append(_table(dict(_flat(kept.get("figures", kept)))))
    return "\n\n".join(parts) + "\n"


def _machine(environment: dict[str, Any]) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in environment.get("versions", {}).items())
    keys = ("machine", "cores", "threads", "gpu", "python")
    rest = ", ".join(f"{k} {environment[k]}" for k in keys if environment.get(k))
    return ". ".join(filter(None, (rest, versions))) or "No machine was recorded."


def _flat(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, Any]]:
    """Leaves by their path; lists by number."""
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in _flat(item, (*path, str(key)))]
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return [leaf for i, item in enumerate(value) for leaf in _flat(item, (*path, str(i)))]
    return [(" / ".join(path), value)]


def _table(rows: dict[str, Any]) -> str:
    shown = list(rows.items())[:_ROWS]
    lines = [f"| {_cell(name)} | {_cell(_short(value))} |" for name, value in shown]
    rest = len(rows) - len(shown)
    more = f"\n\nand {rest} more figures in the file." if rest > 0 else ""
    return "\n".join(["| figure | value |", "|---|---|", *lines]) + more


def _short(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 100 else text[:97] + "..."


def _cell(text: str) -> str:
    return " ".join(re.sub(r"([|<>*_`\[\]])", r"\\\1", text).split())


def _mathml(tex: str) -> str:
    return f'<div style="overflow:auto hidden;padding:.5em 0">{convert(" ".join(tex.split()), display="block")}</div>'


def _unescaped(html: str) -> str:
    plain = re.sub(r"</?em>", "_", html)
    return plain.replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">")
