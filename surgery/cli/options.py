"""Options that several commands share, and what their text means."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

if TYPE_CHECKING:
    from surgery.anatomy.inputs import ExampleInputs

ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="timm:NAME, hf:FOLDER-or-ID, or module.path:factory (a function that makes it).",
        show_default=False,
    ),
]
ModelOrRun = Annotated[
    str,
    typer.Argument(
        metavar="MODEL|CONFIG.yaml",
        help="A model as everywhere, or the training file of a run.",
        show_default=False,
    ),
]
Pretrained = Annotated[
    bool | None,
    typer.Option(
        "--pretrained/--random",
        help="Download weights, or leave them random. Default: an hf folder's own weights, else random.",
        show_default=False,
    ),
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(help="State dict to load, .safetensors or what torch.save wrote."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Argument of timm's create_model, the transformers config or the factory; repeatable.",
    ),
]
InputShapes = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="[NAME=]SHAPE[:DTYPE]",
        help="Example input, as 2x3x224x224 or input_ids=2x16:int64, for models that do not tell.",
    ),
]
Meta = Annotated[
    bool, typer.Option("--meta", help="Build without memory for weights: for very large models.")
]

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")]


def wanted(value: Path | None, name: str) -> Path:
    """An option that only a training file makes superfluous.

    Raises:
        typer.BadParameter: If it is missing.
    """
    if value is None:
        raise typer.BadParameter(f"{name} is missing; only a training file does without it")
    return value


def pairs(texts: Iterable[str] | None) -> dict[str, Any]:
    """``["depth=2", "a=[1, 2]"]`` as a mapping; values are YAML.

    Raises:
        typer.BadParameter: If one is no KEY=VALUE.
    """
    found = {}
    for text in texts or ():
        key, equals, value = text.partition("=")
        if not (equals and key.isidentifier()):
            raise typer.BadParameter(f"{text!r} is no KEY=VALUE")
        found[key] = yaml_value(value)
    return found


def yaml_value(text: str) -> Any:
    """``"[1, 2]"`` as a list.

    Raises:
        typer.BadParameter: If it is no value that we read.
    """
    from policies.source import load_value

    try:
        return load_value(text)
    except (yaml.YAMLError, ValueError) as error:
        why = getattr(error, "problem", None) or str(error)
        raise typer.BadParameter(f"{text[:100]!r} is no YAML value: {why}") from error


def example_inputs(texts: Iterable[str] | None) -> ExampleInputs | None:
    """Tensors of the shapes given, (small noise, or ones for whole numbers); None for none.

    Raises:
        typer.BadParameter: If a shape or dtype makes no sense.
    """
    if not texts:
        return None
    from surgery.anatomy.inputs import ExampleInputs

    args, kwargs = [], {}
    for text in texts:
        name, equals, shape = text.rpartition("=")
        if equals:
            kwargs[name] = _tensor(shape)
        else:
            args.append(_tensor(shape))
    return ExampleInputs(tuple(args), kwargs)


def _tensor(text: str) -> Any:
    import torch

    shape, _, word = text.partition(":")
    dtype = getattr(torch, word or "float32", None)
    if not isinstance(dtype, torch.dtype) or not all(n.isdecimal() for n in shape.split("x")):
        raise typer.BadParameter(f"{text!r} is no SHAPE[:DTYPE] such as 2x16:int64")
    sizes = [int(number) for number in shape.split("x")]
    if dtype.is_floating_point:
        return torch.randn(sizes, generator=torch.Generator().manual_seed(0), device="cpu").to(
            dtype
        )
    return torch.ones(sizes, dtype=dtype)
