"""Writing the adapters of a model, of whatever kind, as a LoRA checkpoint that PEFT loads."""

from __future__ import annotations

import json
import os
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from exporters.errors import ExportError
from exporters.low_rank import by_weight, joined
from exporters.preflight import check_destinations, make_folder
from exporters.staging import stage
from surgery.anatomy.types import Access, Layout
from surgery.anatomy.wrappers import tied_names
from surgery.atomic import write_tensors
from surgery.operations.checks import weight_of
from surgery.operations.plan import Operation, Plan
from surgery.operations.state import Record, adapted_model

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
PREFIX = "base_model.model."

_REMEDY = "keep them with surgery.save, or fold them and save the whole model"


@torch.no_grad()
def to_peft(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    base_model: str = "",
    task_type: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a model's adapters as a PEFT LoRA checkpoint; the model is not changed.

    ``PeftModel.from_pretrained(base, folder)`` then computes what the model computes, from the
    original base weights. The adapters of one weight become one pair of factors: those of a slice of a
    fused projection have zeros in the other rows of B, and what SRLoRA and PiSSA moved into the
    frozen weight is part of the factors, whose rank grows by as much.

    Args:
        model: An adapted model.
        folder: Made if it is not there.
        base_model: Name or path of the base model, for whoever loads the checkpoint.
        task_type: PEFT's word for the task (``SEQ_CLS``, ``CAUSAL_LM``); it may stay open.
        overwrite: Whether existing files may be replaced.

    Returns:
        The folder.

    Raises:
        StateError: If nothing is applied to the model.
        ExportError: If PEFT has no words for it: a weight that is read past its module, a bare
            parameter that trained, no adapter at all; or if the files cannot be written.
    """
    target, record = adapted_model(model, "save")
    path = Path(folder)
    if not record.plan.operations:
        raise ExportError(
            "PEFT has no checkpoint without an adapter",
            why="nothing but whole parameters trained, and its LoRA wants at least one projection",
            remedy="keep them with surgery.save, or save the model's own state dict",
        )
    tensors, ranks = _factors(target, record.plan)
    modules = _modules_to_save(target, record)
    parameters = {**dict(target.named_parameters()), **dict(target.named_buffers())}
    tensors |= {
        PREFIX + name: value
        for name, value in parameters.items()
        if name.rpartition(".")[0] in modules
    }
    config = _config(ranks, modules, base_model, task_type, record.plan, target)
    make_folder(path)
    check_destinations([path / CONFIG, path / TENSORS], overwrite)
    with stage(path) as aside:
        content = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        write_tensors(aside.folder / TENSORS, content)
        text = json.dumps(config, indent=2, sort_keys=True)
        (aside.folder / CONFIG).write_text(text, encoding="utf-8")
        aside.publish()
    return path


def _factors(model: nn.Module, plan: Plan) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Tensors by key, and the rank of each adapted module."""
    tensors, ranks = {}, {}
    for operations in by_weight(plan).values():
        for operation in operations:
            _check(operation)
        projection = operations[0].projection
        b, a = joined(model, operations)
        ranks[projection.module] = a.shape[0]
        ones = [1] * (weight_of(model, projection).ndim - 2)
        prefix = PREFIX + projection.module
        tensors[f"{prefix}.lora_A.weight"] = a.reshape(*a.shape, *ones)
        tensors[f"{prefix}.lora_B.weight"] = b.reshape(*b.shape, *ones)
    return tensors, ranks


def _check(operation: Operation) -> None:
    if operation.access is Access.MODULE and operation.projection.parameter == "weight":
        return
    raise ExportError(
        "PEFT cannot carry this adapter",
        where=operation.name,
        why="PEFT adapts the forward of a module, and this weight is read past its module's forward",
        remedy=_REMEDY,
    )


def _modules_to_save(model: nn.Module, record: Record) -> list[str]:
    """The modules whose own parameters trained or buffers moved: PEFT saves whole modules."""
    changed = [*record.plan.trained_names, *record.moved(model)]
    owners = list(dict.fromkeys(name.rpartition(".")[0] for name in changed))
    adapted = {operation.projection.module for operation in record.plan.operations}
    shared = set(chain.from_iterable(tied_names(model)))
    for name in changed:
        owner = name.rpartition(".")[0]
        if owner in adapted or not owner or list(model.get_submodule(owner).children()):
            raise _unsaved(name, "it saves whole modules, of which no part carries an adapter")
        if name in shared:
            raise _unsaved(
                name, "it trains a copy of a module, and the model reads this weight elsewhere too"
            )
        for other in adapted:
            if any(part.endswith(owner) for part in _ancestors(other)):
                raise _unsaved(
                    name, f"it takes every module whose name ends so, with {other} among them"
                )
    return owners


def _unsaved(name: str, why: str) -> ExportError:
    return ExportError("PEFT cannot carry all that trained", where=name, why=why, remedy=_REMEDY)


def _ancestors(path: str) -> list[str]:
    """A module's path and those of the modules that it lies in."""
    parts = path.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _config(
    ranks: dict[str, int],
    modules: list[str],
    base_model: str,
    task_type: str | None,
    plan: Plan,
    model: nn.Module,
) -> dict[str, Any]:
    """PEFT's own words. Every alpha is the rank: the factors hold their scaling."""
    ((usual, _),) = Counter(ranks.values()).most_common(1)
    # A leading ^ keeps PEFT from taking the name for the end of a longer one.
    others = {f"^{module}": rank for module, rank in ranks.items() if rank != usual}
    layouts = {operation.projection.layout for operation in plan.operations}
    return {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base_model,
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": _targets(list(ranks), model),
        "modules_to_save": modules or None,
        "bias": "none",
        "fan_in_fan_out": layouts == {Layout.IN_OUT},
        "inference_mode": True,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
    }


def _targets(adapted: list[str], model: nn.Module) -> list[str] | str:
    """Names; where one is also the end of another module's name, one regular expression instead."""
    paths = [path for path, _ in model.named_modules()]
    ambiguous = any(path.endswith(f".{name}") for name in adapted for path in paths)
    return "|".join(name.replace(".", r"\.") for name in adapted) if ambiguous else sorted(adapted)
