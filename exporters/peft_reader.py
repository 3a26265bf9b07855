"""Reading PEFT's LoRA checkpoints: they become our adapters, to be run, folded, exported."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from exporters.errors import ExportError
from exporters.peft_checkpoint import PeftCheckpoint, read_peft
from exporters.peft_match import Match, Names, PeftMatch, match
from policies import Policy
from policies.schema import Selection
from surgery.adapters.base import Adapter
from surgery.adapters.lora import LoRA
from surgery.anatomy.types import Anatomy
from surgery.anatomy.wrappers import tied_names
from surgery.operations.apply import graft
from surgery.operations.checks import access_of
from surgery.operations.plan import Operation, Plan
from surgery.operations.state import plain_model
from surgery.operations.undo import undo

Model = TypeVar("Model", bound=nn.Module)


def from_peft(
    model: Model,
    folder: str | os.PathLike[str],
    *,
    names: Names | None = None,
    anatomy: Anatomy | None = None,
    example_inputs: Any = None,
) -> Model:
    """Put the adapters of a PEFT LoRA checkpoint on a plain model, in place.

    Modules are found by their names. What the model does not have under its name (transformers 5
    renamed ViT's ``attention.attention.query`` to ``attention.q_proj``, timm fuses it) is found by
    structure: the model's graph is read, and the one projection of the same role, block and shape is
    taken. What was matched to what stands in the notes of ``surgery.summary(model)``, and in
    :func:`exporters.match_peft` beforehand. Where the checkpoint adapts a fused query, key and value as
    a whole, the order of its rows is taken to be the model's: a checkpoint does not tell.

    What the checkpoint saved besides (``modules_to_save``) is written into the model and trains on.
    Afterwards the model is one of ours: ``surgery.fold``, ``undo`` and ``save`` work, and so does
    :func:`exporters.to_onnx`.

    Args:
        model: The base model that the adapters were trained on.
        folder: With ``adapter_config.json`` and ``adapter_model.safetensors``.
        names: Module of the model by module of the checkpoint, where structure does not tell.
        anatomy: What ``surgery.read`` gave, if it was read before.
        example_inputs: For the reading, if the model does not tell its inputs itself.

    Returns:
        The same model.

    Raises:
        ExportError: If the files are missing or broken, use something other than plain LoRA, or a
            module fits nowhere or in several places. The model is untouched.
        StateError, PlanError: As ``surgery.apply``.
    """
    target = plain_model(model)
    checkpoint = read_peft(folder)
    matched = match(target, checkpoint, names or {}, anatomy, example_inputs)
    plan = _plan(target, checkpoint, matched)
    theirs = {o.path: m.theirs for o, m in zip(plan.operations, matched.matches, strict=True)}

    def start(operation: Operation, adapter: Adapter, rows: Tensor) -> None:
        assert isinstance(adapter, LoRA)
        b, a = checkpoint.factors[theirs[operation.path]]
        adapter.load_state_dict({"A": a, "B": b})

    own = {**dict(target.named_parameters()), **dict(target.named_buffers())}
    shared = set(chain.from_iterable(tied_names(target)))
    tied = next((ours for ours in matched.rest.values() if ours in shared), None)
    if tied is not None:
        raise ExportError(
            "the checkpoint brings a weight that the model shares with another",
            where=tied,
            why="PEFT trained a copy of it; written here it would change both",
            remedy="untie the weights first (tie_word_embeddings=False)",
        )
    graft(target, plan, start)
    try:
        with torch.no_grad():
            for name, ours in matched.rest.items():
                own[ours].copy_(checkpoint.rest[name])
    except BaseException:
        undo(target)
        raise
    return model


def _plan(model: nn.Module, checkpoint: PeftCheckpoint, matched: PeftMatch) -> Plan:
    operations = _operations(model, checkpoint, matched.matches)
    saved = set(matched.rest.values())
    trained = [name for name, _ in model.named_parameters() if name in saved]
    policy = Policy(
        name="peft",
        description="read from a PEFT checkpoint",
        select=tuple(map(_selection, operations)),
        adapter=operations[0].adapter,
        train=tuple(trained),
    )
    return Plan(
        model=f"{type(model).__module__}.{type(model).__qualname__}",
        policy=policy,
        operations=operations,
        train={name: (name,) for name in trained},
        base_parameters=sum(p.numel() for p in model.parameters()),
        extra_parameters=sum(model.get_parameter(name).numel() for name in trained),
        notes=matched.notes,
    )


def _operations(
    model: nn.Module, checkpoint: PeftCheckpoint, matches: tuple[Match, ...]
) -> tuple[Operation, ...]:
    sharing = defaultdict(list)
    for entry in matches:
        sharing[entry.projection.weight_name].append(entry.projection)
    return tuple(
        Operation(
            projection=entry.projection,
            slot=entry.projection.role.short,
            access=access_of(model, sharing[entry.projection.weight_name]),
            adapter=checkpoint.adapter(entry.theirs),
            parameters=sum(math.prod(factor.shape) for factor in checkpoint.factors[entry.theirs]),
        )
        for entry in matches
    )


def _selection(operation: Operation) -> Selection:
    projection = operation.projection
    roles = () if projection.whole else (projection.role,)
    return Selection(modules=(projection.module,), roles=roles, adapter=operation.adapter)
