"""Inputs with a batch each: texts and images that a model compares, all with all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from exporters.axes import BATCH
from exporters.eager import outputs_of
from exporters.edits import placeholders
from exporters.inputs import Inputs, everything, identifier


def told_apart(program: ExportedProgram, inputs: Inputs, model: nn.Module) -> Inputs:
    """The same; where the model compares two batches, each under a name of its own.

    torch has a symbol for the batch of each input, and does not always learn that two are one: a mask may be
    read by index. They may be two where one tensor has both for dimensions, and are where the model takes
    different ones: a loss of pairs does not. The others belong to the tower in which they are first read.
    """
    batches = dict(_batches(program, inputs))
    leaders = _leaders(program, batches)
    if len(leaders) < 2:
        return inputs
    tower = _towers(program, batches, leaders)
    first, *others = leaders
    names = {first: BATCH, **{leader: f"{identifier(leader)}_{BATCH}" for leader in others}}
    axes = {
        name: {d: names[tower[name]] if axis == BATCH else axis for d, axis in dims.items()}
        for name, dims in inputs.axes.items()
    }
    split = replace(inputs, axes=axes)
    if not _takes(model, split.resized({names[other]: 1 for other in others}, keep=everything)):
        return inputs
    notes = (f"{names[n]} is the batch of {n}: it need not be that of {first}" for n in others)
    return replace(split, notes=(*inputs.notes, *notes))


def _takes(model: nn.Module, inputs: Inputs) -> bool:
    try:
        outputs_of(model, inputs)
    except Exception:  # whatever the model raises for batches that do not fit
        return False
    return True


def _batches(program: ExportedProgram, inputs: Inputs) -> Iterator[tuple[str, str]]:
    """Input and the symbol of its batch, or the number that it is."""
    nodes = placeholders(program)
    for name, dims in inputs.axes.items():
        for dim, axis in dims.items():
            if axis == BATCH:
                yield name, str(nodes[identifier(name)].meta["val"].shape[dim])


def _leaders(program: ExportedProgram, batches: dict[str, str]) -> list[str]:
    """The first input of each tower: its batch meets that of every other tower in some tensor."""
    shapes = [
        [str(size) for size in node.meta["val"].shape]
        for node in program.graph.nodes
        if isinstance(node.meta.get("val"), Tensor)
    ]
    wanted = {symbol for symbol in batches.values() if not symbol.isdecimal()}
    met = [wanted.intersection(shape) for shape in shapes]
    leaders: list[str] = []
    for name, symbol in batches.items():
        pairs = ({symbol, batches[leader]} for leader in leaders)
        if symbol in wanted and all(
            len(pair) == 2 and any(pair <= both for both in met) for pair in pairs
        ):
            leaders.append(name)
    return leaders


def _towers(
    program: ExportedProgram, batches: dict[str, str], leaders: list[str]
) -> dict[str, str]:
    """The leader that each input goes with: by its symbol, else by where they first meet."""
    by_symbol = {batches[leader]: leader for leader in leaders}
    found = {n: by_symbol[symbol] for n, symbol in batches.items() if symbol in by_symbol}
    nodes = placeholders(program)
    owners = {nodes[identifier(name)]: name for name in batches}
    read: dict[fx.Node, set[str]] = {}
    for node in program.graph.nodes:
        read[node] = {owners[node]} if node in owners else set()
        read[node].update(*(read[source] for source in node.all_input_nodes))
        met = {found[name] for name in read[node] if name in found}
        if len(met) == 1:
            (leader,) = met
            found |= {name: leader for name in read[node] if name not in found}
    return {name: found.get(name, leaders[0]) for name in batches}
