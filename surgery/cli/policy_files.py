"""``surgery policies``: list, show, write, check, and the schema for editors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.syntax import Syntax
from rich.table import Table

import policies
from surgery.cli.output import Json, emit
from surgery.cli.staging import write_text

if TYPE_CHECKING:
    from policies import AdapterSpec, Policy
    from policies.schema import Selection

app = typer.Typer(no_args_is_help=True, help="List, show, write and check policies.")

_TEMPLATE = """\
# {name}: {parent}, and what you change below. Check it with: surgery policies check {path}
extends: {parent}
description: what it does, in a line
when: when to use it, in a line
{select}adapter: {{rank: {rank}}}
"""
_DEPTHS = "# all, last 4, 0-5, last 50%, every 2"


@app.command("list")
def list_policies(as_json: Json = False) -> None:
    """List every policy that can be asked for by name.

    Example: surgery policies list
    """
    rows = [policies.get(name) for name in policies.names()]
    plain = [{"name": p.name, "description": p.description, "when": p.when} for p in rows]
    table = Table("name", "what it does", "when to use it")
    for row in plain:
        table.add_row(*row.values())
    emit(plain, table, as_json)


@app.command()
def show(
    policy: Annotated[str, typer.Argument(help="Name or path.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Print a policy in full, with everything it extends laid together.

    Example: surgery policies show vit-attn-qv
    """
    plain = policies.get(policy).to_dict()
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    emit(plain, Syntax(text, "yaml", background_color="default"), as_json)


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="How you will ask for it.", show_default=False)],
    extends: Annotated[str, typer.Option("--from", help="Policy to start from.")] = "vit-attn-qv",
    folder: Annotated[Path, typer.Option(help="Where to.")] = Path(".surgery/policies"),
    as_json: Json = False,
) -> None:
    """Write a policy file to start from; it can be asked for by its name at once.

    Example: surgery policies new mine --from vit-attn-qv
    """
    if not name.replace("-", "").replace("_", "").isalnum():
        raise typer.BadParameter(f"{name!r}: letters, digits, - and _ make a name")
    parent = policies.get(extends)
    path = folder / f"{name}.yaml"
    # A file's path counts from the file that extends it.
    whence = (
        Path(os.path.relpath(extends, folder)).as_posix() if Path(extends).is_file() else extends
    )
    text = _text(name, whence, parent, path)
    write_text(path, text)
    emit({"path": str(path), "policy": policies.get(path).to_dict()}, f"wrote {path}", as_json)


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="A policy file.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Check a policy file; an error names the line and the near word.

    Example: surgery policies check .surgery/policies/mine.yaml
    """
    found = policies.get(file)
    for place, spec in _specs(found):
        _check_adapter(file, place, spec)
    emit({"valid": True, "policy": found.to_dict()}, f"{file}: {found.name} is valid", as_json)


@app.command()
def schema() -> None:
    """Print the JSON schema of a policy file, for editors; it is JSON always.

    Example: surgery policies schema > policy.schema.json
    """
    emit(policies.json_schema(), "", as_json=True)


def _text(name: str, extends: str, parent: Policy, path: Path) -> str:
    lines = [line for selection in parent.select for line in _lines(selection)]
    select = "\n".join(["select:", *lines, ""]) if lines else ""
    text = _TEMPLATE.format(
        name=name, parent=extends, path=path, select=select, rank=parent.adapter.rank
    )
    return text if lines else text.rpartition("adapter:")[0]


def _lines(selection: Selection) -> Iterator[str]:
    """A selection with all that it says, and with its depth even if that says nothing."""
    plain = {
        "roles": [],
        "depth": selection.depth,
        **selection.model_dump(mode="json", exclude_defaults=True),
    }
    for number, (key, value) in enumerate(plain.items()):
        text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1000)
        said = text.removesuffix("...\n").strip()
        yield f"  {' ' if number else '-'} {key}: {said}{f'  {_DEPTHS}' if key == 'depth' else ''}"


def _specs(policy: Policy) -> list[tuple[tuple[str | int, ...], AdapterSpec]]:
    own = [(("select", i, "adapter"), s.adapter) for i, s in enumerate(policy.select)]
    return [(("adapter",), policy.adapter), *((place, s) for place, s in own if s is not None)]


def _check_adapter(file: Path, place: tuple[str | int, ...], spec: AdapterSpec) -> None:
    """Kind and options against the adapters that are installed; the error gets its line."""
    from policies import PolicyError, source
    from surgery.adapters import registry

    try:
        registry.check_options(spec.kind, spec.options)
    except PolicyError as error:
        document = source.load_file(file)
        known: list[Any] = [o for o in spec.options if o not in _options(spec.kind)]
        where = document.at((*place, *(known[:1] or ["kind"])))
        raise PolicyError(error.what, where=where, why=error.why, remedy=error.remedy) from error


def _options(kind: str) -> tuple[str, ...]:
    from surgery.adapters import registry

    return registry.options_of(kind) if kind in registry.names() else ()
