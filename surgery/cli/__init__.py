"""The command line: ``surgery inspect``, ``plan``, ``fold``, ``export``, and what goes with them.

Every command prints a table for people or, with ``--json``, one JSON value and nothing else on stdout;
status, notes and errors go to stderr. Exit codes: 0, 1 (an error, or a verification that failed), 2
(usage), 130 (interrupted).
"""

from __future__ import annotations

from typing import Annotated

import typer

from surgery.cli import (
    adapter_files,
    convert,
    delivery,
    export,
    machine,
    onnx_files,
    planning,
    policy_files,
    reading,
    runs,
)
from surgery.cli.failures import Guarded

app = typer.Typer(
    cls=Guarded,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Name-free model surgery: read a model, plan, fold adapters, export to verified ONNX.",
)
app.command("inspect")(reading.inspect)
app.command("plan")(planning.plan)
app.command("verify")(reading.verify)
app.command("train")(runs.train)
app.command("fold")(delivery.fold)
app.command("export")(export.export)
app.command("convert")(convert.convert)
app.command("report")(runs.report)
app.command("bench")(onnx_files.bench)
app.command("info")(adapter_files.info)
app.command("diff")(adapter_files.diff)
app.add_typer(policy_files.app, name="policies")
app.command("doctor")(machine.doctor)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(machine.installed("model-surgery") or "not installed, run from its sources")
        raise typer.Exit


@app.callback()
def main(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and warnings.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Name-free model surgery: read a model, plan, fold adapters, export to verified ONNX."""


__all__ = ["app"]
