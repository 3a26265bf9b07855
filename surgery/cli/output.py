"""What goes to stdout, and what goes to stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType

Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]

_PIPED_WIDTH = 118


def emit(plain: Any, drawn: RenderableType, as_json: bool) -> None:
    """Print a result: its plain data as JSON, or what it looks like."""
    if as_json:
        typer.echo(json.dumps(plain, indent=2, default=str))
        return
    Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH).print(drawn)


def note(text: str) -> None:
    """Say something that a reader should know, on stderr."""
    if first_process():
        typer.echo(f"note: {text}", err=True)


def first_process() -> bool:
    """Whether this is the only process, or the first of those that a launcher started."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def working(message: str, *, quiet: bool = False) -> Iterator[None]:
    """Say on stderr what takes its time; whatever libraries print meanwhile goes there, too.

    With ``quiet`` nothing is said: who works shows its own progress. Of several processes one speaks.
    """
    console = Console(stderr=True)
    with redirect_stdout(sys.stderr):
        if quiet or not first_process():
            yield
            return
        if not console.is_terminal:
            typer.echo(f"{message} ...", err=True)
            yield
            return
        with console.status(message):
            yield
