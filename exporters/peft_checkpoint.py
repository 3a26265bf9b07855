"""PEFT's LoRA checkpoints as they lie on disk: read, sorted, and refused where they are more than B A."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from exporters.errors import ExportError
from exporters.peft_bridge import CONFIG, PREFIX, TENSORS
from policies import AdapterSpec
from surgery.errors import told_at_length

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
    "kasa_config",
    "monteclora_config",
    "velora_config",
    "use_bdlora",
    "arrow_config",
)
_MOVED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class PeftCheckpoint:
    """A PEFT folder.

    Attributes:
        folder: Where it lies.
        config: ``adapter_config.json``.
        factors: (B, A) by module path, as matrices (out, r) and (r, in).
        rest: What else it holds, by parameter name.
    """

    folder: Path
    config: Mapping[str, Any]
    factors: dict[str, tuple[Tensor, Tensor]]
    rest: dict[str, Tensor]

    def misfit(self, where: str, why: str, remedy: str) -> ExportError:
        """The error that says why it cannot be read."""
        what = f"the PEFT checkpoint {self.folder.name} cannot be read onto this model"
        return ExportError(what, where=where, why=why, remedy=remedy)

    def shape(self, module: str) -> tuple[int, int]:
        """(out, in) of one module's update.

        Raises:
            ExportError: If its two factors do not belong together.
        """
        b, a = self.factors[module]
        if b.shape[1] != a.shape[0]:
            why = f"its factors are {tuple(b.shape)} and {tuple(a.shape)}, two ranks"
            raise self.misfit(module, why, "save the checkpoint again")
        return b.shape[0], a.shape[1]

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
            remedy = f"correct {CONFIG}, or save it again"
            raise self.misfit(module, told_at_length(error), remedy) from error


def read_peft(folder: str | os.PathLike[str]) -> PeftCheckpoint:
    """Read a PEFT folder. Nothing in it is executed or unpickled.

    Raises:
        ExportError: If it is missing, broken, or something other than plain LoRA.
    """
    checkpoint = _read(Path(folder))
    _check_config(checkpoint)
    return checkpoint


def _alpha(config: Mapping[str, Any], module: str) -> Any:
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if len(pattern) > 200 or not _HARMLESS.fullmatch(pattern):
            raise ValueError(f"alpha_pattern {pattern[:50]!r} is more than a name with .* or \\d+")
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return config.get("lora_alpha", 8)


def _read(folder: Path) -> PeftCheckpoint:
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
    checkpoint = PeftCheckpoint(folder, config, factors, rest)
    if broken is not None or not factors:
        why = "it holds one factor of two" if broken else "it holds no LoRA factors"
        raise checkpoint.misfit(broken or TENSORS, why, "save the checkpoint again")
    return checkpoint


def _sorted(tensors: dict[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """The factors by module and side, and the rest."""
    sides: dict[str, dict[str, Tensor]] = {}
    rest = {}
    for key, value in tensors.items():
        if ".lora_embedding_" in key:
            raise ValueError(
                f"{key} adapts an embedding: merge it with PEFT, model.merge_and_unload()"
            )
        if found := _FACTOR.fullmatch(key):
            if value.ndim < 2 or not value.is_floating_point():
                raise ValueError(f"{key} is {value.dtype} of {value.ndim} dimensions: no factor")
            sides.setdefault(found[1], {})[found[2]] = value.flatten(1)
        else:
            rest[key.removeprefix(PREFIX)] = value
    return sides, rest


def _check_config(checkpoint: PeftCheckpoint) -> None:
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
