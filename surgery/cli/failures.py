"""What a command line user sees when something fails: one line, a hint, an exit code."""

from __future__ import annotations

import io
import sys
import warnings
from typing import Any

import typer
from typer.core import TyperGroup

from policies.errors import SurgeryError, told_by

_HERE = {
    "example_inputs=": "--input 2x3x224x224",
    "overwrite=True": "--overwrite",
    "dynamic=": "--dynamic x=0:batch",
    "policies.json_schema()": "surgery policies schema",
    "policies.names()": "surgery policies list",
    "a dict or a Policy": "surgery policies list",
}
"""What a word of Python's in a remedy is on the command line."""

FAILED = 1
INTERRUPTED = 130


class Guarded(TyperGroup):
    """A group of commands that never shows a traceback unless asked with ``--debug``."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; its failure becomes lines on stderr and an exit code."""
        _print_anything()
        if ctx.params.get("debug"):
            return self._run(ctx)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", module=r"(torch|onnx|copyreg|timm|transformers)")
                return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("interrupted: nothing half-written was left behind", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except SurgeryError as error:
            _say(error)
        except (BrokenPipeError, typer.Abort):
            raise
        except Exception as error:
            if hasattr(error, "exit_code"):  # the command line's own: a usage error, an exit
                raise
            _say(_unexpected(error))
        raise typer.Exit(FAILED)

    def _run(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None


def _print_anything() -> None:
    """A pipe or terminal that has no arrow or accent gets a question mark."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _unexpected(error: Exception) -> SurgeryError:
    return SurgeryError(
        "this should not have happened",
        why=told_by(error),
        remedy="surgery --debug ... shows where it came from; please report it",
    )


def _say(error: SurgeryError) -> None:
    typer.echo("error: " + ": ".join(filter(None, (error.what, error.where, error.why))), err=True)
    if error.remedy:
        here = next(
            (f" (here: {ours})" for word, ours in _HERE.items() if word in error.remedy), ""
        )
        typer.echo(f"hint: {error.remedy}{here}", err=True)
