"""transformers: every model type of ``MODEL_MAPPING``, as a small random base model, and its common heads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from inspect import signature
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import (
    CONFIG_MAPPING_NAMES,
    model_type_to_module_name,
)

from benchmarks.zoo.examine import Specimen
from benchmarks.zoo.overrides import OVERRIDES
from benchmarks.zoo.particular_inputs import particular_inputs
from benchmarks.zoo.tiny import shallow, tiny
from surgery.anatomy.inputs import ExampleInputs, example_inputs

_HEADS = {
    "causal-lm": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "sequence": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "image": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "ctc": "MODEL_FOR_CTC_MAPPING_NAMES",
    "detection": "MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES",
    "segmentation": "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES",
}


class Transformers:
    """Names are ``bert`` for the base model and ``bert:sequence`` for one with a head."""

    def names(self) -> list[str]:
        """Every base model, then every base model with each of its common heads."""
        bases = sorted(modeling_auto.MODEL_MAPPING_NAMES)
        heads = [
            f"{kind}:{head}"
            for head, mapping in _HEADS.items()
            for kind in getattr(modeling_auto, mapping)
            if kind in CONFIG_MAPPING_NAMES
        ]
        return bases + sorted(heads)

    def family(self, name: str) -> str:
        """The model type."""
        return name.partition(":")[0]

    def specimens(self, name: str) -> Iterator[Specimen]:
        """A random instance of each small configuration of which an instance runs."""
        kind, first, made = _model_class(name), None, 0
        for how, config in _configurations(name):
            try:
                model = kind(_own(config(), kind)).eval()
                given = particular_inputs(name, model.config)
                specimen = Specimen(model, _running_inputs(model, given), how)
            except Exception as error:
                first = first or error
                continue
            made += 1
            yield specimen
        if not made:
            raise first or RuntimeError("no configuration")


def _running_inputs(model: nn.Module, given: dict[str, Any] | None) -> ExampleInputs:
    if type(model).forward is nn.Module.forward:
        raise RuntimeError(
            f"{type(model).__name__} has no forward: its parts are called one by one"
        )
    if "inference_session" in signature(model.forward).parameters:
        raise RuntimeError("its forward takes an object that keeps frames and memories, no tensors")
    inputs = example_inputs(model, given)
    with torch.no_grad():
        model(*inputs.args, **inputs.kwargs)
    return inputs


def _model_class(name: str) -> type[nn.Module]:
    kind, _, head = name.partition(":")
    table = getattr(modeling_auto, _HEADS[head] if head else "MODEL_MAPPING_NAMES")
    names: Any = table[kind]
    wanted = names if isinstance(names, str) else names[0]
    found: type[nn.Module] = getattr(transformers, wanted, None) or getattr(_home(kind), wanted)
    return found


def _home(kind: str) -> Any:
    """The module of a type: not every class of MODEL_MAPPING is a name of transformers itself."""
    module = model_type_to_module_name(kind)
    return import_module(f"transformers.models.{module}.modeling_{module}")


def _own(config: Any, kind: type[nn.Module]) -> Any:
    """The configuration, or the part of it that the model takes: a language model's of a composite."""
    wanted: Any = getattr(kind, "config_class", None)
    if wanted is None or isinstance(config, wanted):
        return config
    parts = (getattr(config, name, None) for name in config.sub_configs)
    return next((part for part in parts if isinstance(part, wanted)), config)


def _configurations(name: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Small in every way, then only shallow; smaller ones may not fit together."""
    kind = name.partition(":")[0]
    config: Any = getattr(transformers, CONFIG_MAPPING_NAMES[kind])
    overrides = OVERRIDES.get(name, OVERRIDES.get(kind, {}))

    def published() -> Any:
        try:
            return config()
        except Exception:
            return config(
                **overrides
            )  # its own defaults contradict each other (Gemma 4's assistant)

    yield "tiny configuration, each kind of layer", lambda: tiny(published(), overrides)
    yield "tiny configuration", lambda: tiny(published(), overrides, kinds=False)
    yield "shallow configuration", lambda: shallow(published())
