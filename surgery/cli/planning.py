"""``surgery plan``: what would be done, on a model or by a training file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from surgery.cli.models import Source
from surgery.cli.options import (
    Checkpoint,
    InputShapes,
    Meta,
    ModelOrRun,
    Pretrained,
    Settings,
    example_inputs,
    pairs,
)
from surgery.cli.output import Json, emit, note, working
from surgery.cli.staging import write_text
from surgery.cli.trained import SUFFIXES, source_of

if TYPE_CHECKING:
    from surgery import Plan


def plan(
    model: ModelOrRun,
    policy: Annotated[
        str | None, typer.Option("--policy", "-p", help="Name, or path of a YAML file.")
    ] = None,
    rank: Annotated[int | None, typer.Option(help="Pairs of each adapter.")] = None,
    adapter: Annotated[str | None, typer.Option(help="symlora, srlora, lora, ...")] = None,
    alpha: Annotated[float | None, typer.Option(help="Scaling numerator.")] = None,
    depth: Annotated[str | None, typer.Option(help="all, 'last 4', 0-5, 'every 2', ...")] = None,
    budget: Annotated[
        str | None, typer.Option(help="Instead of a rank: 0.3%, 300k; the largest rank within.")
    ] = None,
    part: Annotated[
        str | None, typer.Option(help="vision, text, audio, encoder or decoder.")
    ] = None,
    role: Annotated[list[str] | None, typer.Option(help="query, mlp.up, ...; repeatable")] = None,
    train: Annotated[list[str] | None, typer.Option(help="head, norms, a glob; repeatable")] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="An adapter's own; repeatable.")
    ] = None,
    settings: Settings = None,
    inputs: InputShapes = None,
    pretrained: Pretrained = None,
    checkpoint: Checkpoint = None,
    meta: Meta = False,
    out: Annotated[
        Path | None, typer.Option(help="Keep the policy, with its ranks, in this new YAML file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Lay a policy on a model and print what would be done. Nothing is changed.

    Of a training file it shows what surgery train would do; with rank: auto the ranks are measured on its data.

    Example: surgery plan timm:vit_tiny_patch16_224 --policy vit-attn-qv --rank 16 --depth "last 4"
    """
    words: dict[str, Any] = {"adapter": adapter, "rank": rank, "alpha": alpha, "depth": depth}
    words |= {"budget": budget, "part": part}
    words |= {"roles": role or None, "train": train or None, **pairs(option)}
    source = (settings, pretrained, checkpoint)
    if model.endswith(SUFFIXES):
        given = (policy, *words.values(), *source, inputs)
        if meta or any(value is not None for value in given):
            raise typer.BadParameter("the training file says all of it: leave the options out")
        made = _of_run(Path(model))
    elif policy is None:
        raise typer.BadParameter("name a policy with --policy; surgery policies list shows them")
    else:
        made = _of_model(Source.parse(model, *source), policy, words, inputs, meta)
    if out:
        write_text(out, str(made.policy))
        note(f"the policy: {out}")
    emit(made.to_dict(), made, as_json)


def _of_model(
    source: Source, policy: str, words: dict[str, Any], inputs: list[str] | None, meta: bool
) -> Plan:
    import policies
    import surgery

    wanted = policies.get(policy, **words)
    built = source.build(meta=meta)
    with working("reading the graph"):
        return surgery.plan(built, wanted, example_inputs=example_inputs(inputs))


def _of_run(config: Path) -> Plan:
    import surgery
    from surgery.runs import training_file
    from surgery.runs.feed import feed
    from surgery.runs.measure import policy_for
    from surgery.runs.samples import open_data

    spec, _ = training_file.load(config)
    with working("opening the data"):
        data = open_data(spec.data, spec.seed)
    measured = spec.policy.measured
    built = source_of(spec, data.labels, data.kind).build(weights_matter=measured)
    with working("measuring ranks" if measured else "reading the graph"):
        return surgery.plan(built, policy_for(built, spec, feed(data, built, spec)))
