"""Reading PEFT's LoRA checkpoints: they become our adapters, to be run, folded, exported."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from torch import Tensor, nn

from exporters.errors import ExportError
from exporters.peft_bridge import CONFIG, PREFIX, TENSORS
from policies import AdapterSpec, Policy
from policies.schema import Selection
from surgery.adapters.base import Adapter
from surgery.adapters.lora import LoRA
from surgery.anatomy.types import Access, Projection
from surgery.operations.apply import graft
from surgery.operations.by_name import anatomy_by_name
from surgery.operations.checks import access_of
from surgery.operations.plan import Operation, Plan
from surgery.operations.state import plain_model

Model = TypeVar("Model", bound=nn.Module)

_FACTOR = re.compile(re.escape(PREFIX) + r"(.+)\.lora_([AB])\.weight")
_HARMLESS = re.compile(r"[\w.\\|()^$-]*((\.\*|\\d\+|\[0-9\]\+)[\w.\\|()^$-]*){0,3}", re.ASCII)
"""Patterns that cannot keep the matcher busy for ever: no repeated groups, few repetitions."""
_UNSUPPORTED = (
    "use_dora",
    "use_qalora",
    "lora_bias",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
    "megatron_config",
)
_MOVED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class _Checkpoint:
    """A PEFT folder.

    Attributes:
        folder: Where it lies.
        config: ``adapter_config.json``.
        factors: (B, A) by module path, as matrices.
        rest: What else it holds, by parameter name.
    """

    folder: Path
    config: Mapping[str, Any]
    factors: dict[str, tuple[Tensor, Tensor]]
    rest: dict[str, Tensor]

    def misfit(self, where: str, why: str, remedy: str) -> ExportError:
        what = f"the PEFT checkpoint {self.folder.name} cannot be read onto this model"
        return ExportError(what, where=where, why=why, remedy=remedy)

    def adapter(self, module: str) -> AdapterSpec:
        """Our words for one module's LoRA."""
        config = self.config
        try:
            options: dict[str, Any] = {"dropout": float(config.get("lora_dropout") or 0.0)}
            if config.get("use_rslora"):
                options["scaling"] = "rslora"
            alpha = float(_alpha(config, module))
            rank = self.factors[module][1].shape[0]
            return AdapterSpec(kind="lora", rank=rank, alpha=alpha, options=options)
        except Exception as error:  # the config can be anything at all
            why = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise self.misfit(module, why, f"correct {CONFIG}, or save it again") from error


def _alpha(config: Mapping[str, Any], module: str) -> Any:
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if len(pattern) > 200 or not _HARMLESS.fullmatch(pattern):
            raise ValueError(f"alpha_pattern {pattern[:50]!r} is more than a name with .* or \\d+")
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return config.get("lora_alpha", 8)


def from_peft(model: Model, folder: str | os.PathLike[str]) -> Model:
    """Put the adapters of a PEFT LoRA checkpoint on a plain model, in place.

    Modules are found by their names. What the checkpoint saved besides (``modules_to_save``) is
    written into the model and trains on. Afterwards the model is one of ours: ``surgery.fold``,
    ``undo`` and ``save`` work, and so does :func:`exporters.to_onnx`.

    Args:
        model: The base model that the adapters were trained on.
        folder: With ``adapter_config.json`` and ``adapter_model.safetensors``.

    Returns:
        The same model.

    Raises:
        ExportError: If the files are missing or broken, use something other than plain LoRA, or
            name modules that the model does not have. The model is untouched.
        StateError, PlanError: As ``surgery.apply``.
    """
    target = plain_model(model)
    checkpoint = _read(Path(folder))
    _check_config(checkpoint)
    plan = _plan(target, checkpoint)

    def start(operation: Operation, adapter: Adapter, rows: Tensor) -> None:
        assert isinstance(adapter, LoRA)
        b, a = checkpoint.factors[operation.projection.module]
        adapter.load_state_dict({"A": a, "B": b})

    graft(target, plan, start)
    parameters = {**dict(target.named_parameters()), **dict(target.named_buffers())}
    with torch.no_grad():
        for name, value in checkpoint.rest.items():
            parameters[name].copy_(value)
    return model


def _read(folder: Path) -> _Checkpoint:
    try:
        config = dict(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
        tensors = safetensors.torch.load((folder / TENSORS).read_bytes())
        sides, rest = _sorted(tensors)
    except Exception as error:  # broken files fail in safetensors, torch or json, in many ways
        raise ExportError(
            "this is no PEFT checkpoint that can be read here",
            where=str(folder),
            why=f"{type(error).__name__}: {error}",
            remedy=f"pass a folder with {CONFIG} and {TENSORS}",
        ) from error
    factors = {module: (side["B"], side["A"]) for module, side in sides.items() if len(side) == 2}
    broken = next((module for module, side in sides.items() if len(side) < 2), None)
    checkpoint = _Checkpoint(folder, config, factors, rest)
    if broken is not None or not factors:
        why = "it holds one factor of two" if broken else "it holds no LoRA factors"
        raise checkpoint.misfit(broken or TENSORS, why, "save the checkpoint again")
    return checkpoint


def _sorted(tensors: dict[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """The factors by module and side, and the rest."""
    sides: dict[str, dict[str, Tensor]] = {}
    rest = {}
    for key, value in tensors.items():
        if found := _FACTOR.fullmatch(key):
            if value.ndim < 2 or not value.is_floating_point():
                raise ValueError(f"{key} is {value.dtype} of {value.ndim} dimensions: no factor")
            sides.setdefault(found[1], {})[found[2]] = value.flatten(1)
        else:
            rest[key.removeprefix(PREFIX)] = value
    return sides, rest


def _check_config(checkpoint: _Checkpoint) -> None:
    config = checkpoint.config
    used = [name for name in _UNSUPPORTED if config.get(name)]
    used += [f"peft_type={config.get('peft_type')}"] if config.get("peft_type") != "LORA" else []
    used += [f"bias={config['bias']}"] if config.get("bias", "none") != "none" else []
    if used:
        why = f"it uses {', '.join(used)}, which is more than B A"
        raise checkpoint.misfit(CONFIG, why, "merge it with PEFT: model.merge_and_unload()")
    start = str(config.get("init_lora_weights", "")).lower()
    if start.startswith(_MOVED_BASE):
        why = f"it was started with {start}, which changed the base weights"
        remedy = "save it with path_initial_model_for_weight_conversion, which gives a plain LoRA"
        raise checkpoint.misfit(CONFIG, why, remedy)


def _plan(model: nn.Module, checkpoint: _Checkpoint) -> Plan:
    known = {p.module: p for p in anatomy_by_name(model).others}
    operations = tuple(
        _operation(model, module, known, checkpoint) for module in checkpoint.factors
    )
    names = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, value in checkpoint.rest.items():
        if name not in names or names[name].shape != value.shape:
            remedy = "build the model with the same head (num_labels=..., num_classes=...)"
            raise checkpoint.misfit(
                name, f"the model has no such tensor {tuple(value.shape)}", remedy
            )
    trained = [name for name, _ in model.named_parameters() if name in checkpoint.rest]
    select = tuple(
        Selection(modules=(operation.projection.module,), adapter=operation.adapter)
        for operation in operations
    )
    policy = Policy(
        name="peft",
        description="read from a PEFT checkpoint",
        select=select,
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
    )


def _operation(
    model: nn.Module, module: str, known: Mapping[str, Projection], checkpoint: _Checkpoint
) -> Operation:
    if module not in known:
        near = get_close_matches(module, known, 1, 0)
        why = f"it has no linear layer of that name; the nearest is {near[0] if near else 'none'}"
        remedy = "load onto the class and the transformers or timm version it was trained with"
        raise checkpoint.misfit(module, why, remedy)
    projection = replace(known[module], access=Access.MODULE)
    b, a = checkpoint.factors[module]
    expected = (projection.out_features, projection.in_features)
    if (b.shape[0], a.shape[1]) != expected or b.shape[1] != a.shape[0]:
        why = f"its factors are {tuple(b.shape)} and {tuple(a.shape)}, the layer is {expected}"
        raise checkpoint.misfit(module, why, "load onto the base model it was trained on")
    return Operation(
        projection,
        slot=projection.role.short,
        access=access_of(model, [projection]),
        adapter=checkpoint.adapter(module),
        parameters=math.prod(b.shape) + math.prod(a.shape),
    )
